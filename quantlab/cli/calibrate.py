"""``quantlab calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="Images and an FP32 model to calibrated ranges.")
@options.model
@options.data
@options.labels
@options.preprocess
@options.shapes
@options.limit
@click.option("--method", default="mse", show_default=True, metavar="NAME", help="minmax, percentile, entropy or mse.")
@click.option(
    "--percentile", type=float, default=99.99, show_default=True, help="Share that the percentile method keeps."
)
@options.target
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
    model: Path | None,
    data: str,
    labels: Path | None,
    preprocess: str | None,
    shapes: tuple[str, ...],
    limit: int | None,
    method: str,
    percentile: float,
    target: str,
    batch_size: int,
    threads: int,
    seed: int,
    out: Path,
    force: bool,
    console: Console,
) -> None:
    r"""Run images through an FP32 model once, and compute the ranges of every method.

    Writes calibration.json (all methods' ranges with provenance), <model>.qdq.onnx (Q/DQ model for TensorRT 11,
    TensorRT-RTX and ONNX Runtime), <model>.calib (TensorRT <= 10 calibration cache) and histograms.npz.

    \b
    Examples:
      quantlab calibrate --data imgs/
      quantlab calibrate --model net.onnx --data imgs/ --preprocess imagenet --limit 512 -o out/
    """
    from quantlab.documents import dump_json
    from quantlab.workflow.build import target_for
    from quantlab.workflow.calibrate import (
        CalibrateSettings,
        calibrate,
        check_overwrite,
        summary_document,
        summary_text,
        write_calibration,
    )
    from quantlab.workflow.sources import DataRequest, find_model, open_data, open_model, parse_shapes, thread_count

    del batch_size
    settings = CalibrateSettings(method, percentile, thread_count(threads))
    profile = target_for(target)
    prepared = open_model(find_model(model, Path()), parse_shapes(shapes), console)
    request = DataRequest(data, labels, limit, seed, settings.threads, preprocess)
    check_overwrite(out, prepared, force=force)
    dataset, resolved = open_data(prepared.model, request, console)
    table, histograms = calibrate(prepared, dataset, resolved, settings, console)
    files = write_calibration(out, prepared, table, histograms, profile)
    for degradation in table.degradations:
        console.warn(degradation)
    console.result(summary_text(table, files, console.style), dump_json(summary_document(table, files)))
