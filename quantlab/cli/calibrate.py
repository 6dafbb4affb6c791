"""``quantlab calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import merging, options
from quantlab.cli.console import Console


@click.command(short_help="Images and an FP32 model to calibrated ranges.")
@merging.parts
@merging.merge
@options.model
@merging.data
@options.labels
@options.preprocess
@options.shapes
@options.limit
@click.option(
    "--method",
    default="mse",
    show_default=True,
    metavar="NAME",
    help="minmax, percentile, entropy, mse, or auto: chosen for each tensor by the error at the model's outputs.",
)
@click.option(
    "--minmax-only", is_flag=True, help="With --method minmax: take minima and maxima alone, in about half the time."
)  # fmt: skip
@click.option(
    "--percentile", type=float, default=99.99, show_default=True, help="Share that the percentile method keeps."
)
@merging.stability
@click.option(
    "--recover", is_flag=False, flag_value="default", default="none", show_default=True, metavar="[STEP,...]",
    help="Recover accuracy on the same images: without a value by every step, or by those named; writes recovered/.",
)  # fmt: skip
@options.target
@options.kind
@options.existing
@click.option(
    "--batch-size", type=click.IntRange(1, 65536), default=1, show_default=True,
    help="Accepted for symmetry: calibration runs one sample at a time, so the result never depends on it.",
)  # fmt: skip
@options.threads
@options.seed
@options.out("calibration")
@click.option("--force", is_flag=True, help="Overwrite an earlier calibration made from other inputs.")
@options.common
def command(
    parts: tuple[Path, ...],
    merge: bool,
    model: Path | None,
    data: str | None,
    labels: Path | None,
    preprocess: str | None,
    shapes: tuple[str, ...],
    limit: int | None,
    method: str,
    minmax_only: bool,
    percentile: float,
    stability: bool,
    recover: str,
    target: str,
    kind: str,
    existing: str,
    batch_size: int,
    threads: int,
    seed: int,
    out: Path,
    force: bool,
    console: Console,
) -> None:
    """Run images through an FP32 model once, and compute the ranges of every method.

    Writes calibration.json (all methods' ranges with provenance), <model>.qdq.onnx (Q/DQ model for TensorRT 11,
    TensorRT-RTX and ONNX Runtime), <model>.calib (TensorRT <= 10 calibration cache) and histograms.npz. With --merge,
    the same from PARTS that were calibrated before, byte for byte as from all their images at once.

    \b
    Examples:
      quantlab calibrate --data imgs/
      quantlab calibrate --model net.onnx --data imgs/ --preprocess imagenet --limit 512 -o out/
      quantlab calibrate --data imgs/ --recover
      quantlab calibrate --merge one/ two/ -o whole/
    """  # noqa: D301
    merging.check_flags(merge, parts)
    if merge or data is None:
        return merging.run_merge(parts, model, method, target, kind, existing, threads, out, force, console)
    from quantlab.documents import dump_json
    from quantlab.engines.observation import observe
    from quantlab.graph.existing import check_existing
    from quantlab.memory import return_large_blocks
    from quantlab.workflow.build import existing_policy, quantization_kind, target_for
    from quantlab.workflow.calibrate import (
        CalibrateSettings,
        calibrate,
        check_overwrite,
        summary_document,
        summary_text,
        write_calibration,
    )
    from quantlab.workflow.recovery import check_recoverable, recover_calibrated, recovery_steps
    from quantlab.workflow.sources import DataRequest, find_model, open_data, open_model, parse_shapes, thread_count
    from quantlab.workflow.stability import GroupedObservation, add_stability

    del batch_size
    profile, wanted, policy = target_for(target), quantization_kind(kind), existing_policy(existing)
    profile.limits(wanted)
    steps = recovery_steps(recover, wanted, policy)
    settings = CalibrateSettings(method, percentile, thread_count(threads), profile, minmax_only)
    return_large_blocks()
    prepared = open_model(find_model(model, Path()), parse_shapes(shapes), console)
    request = DataRequest(data, labels, limit, seed, settings.threads, preprocess)
    if steps:
        check_recoverable(prepared)
    check_existing(prepared.model, policy)
    check_overwrite(out, prepared, force=force, recovering=bool(steps))
    dataset, resolved = open_data(prepared.model, request, console)
    grouped = GroupedObservation(seed) if stability else None
    table, histograms = calibrate(
        prepared, dataset, resolved, settings, console, grouped.observe if grouped is not None else observe
    )
    recovered = recover_calibrated(prepared, dataset, table, steps, profile, settings.threads, out, console)
    files = write_calibration(
        out, prepared, table, histograms, profile, kind=wanted, existing=policy, recovered=recovered
    )
    for degradation in (*table.degradations, *(recovered.degradations if recovered is not None else ())):
        console.warn(degradation)
    text, document = summary_text(table, files, console.style), summary_document(table, files)
    if grouped is not None:
        more = add_stability(grouped, out, prepared, table, profile, settings.threads, console, console.style)
        text, document = text + "\n" + more[0], document | more[1]
    console.result(text, dump_json(document))
    return None
