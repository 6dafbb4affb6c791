"""``quantlab build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantlab.cli import options
from quantlab.cli.console import Console
from quantlab.engines.tensorrt.options import BuildFlags

if TYPE_CHECKING:
    from quantlab.workflow.native_calibration import CalibrationRequest


@click.command(short_help="Model and calibration table to engine variants.")
@options.model
@click.option("--table", type=options.PATH, help="calibration.json; needed for int8 and fp8.")
@click.option("--precisions", default="fp32,tf32,fp16,int8", show_default=True, metavar="LIST", help="What to build.")
@click.option("--method", metavar="NAME", help="Range method. Default: the table's.")
@options.target
@options.backend
@click.option("--exclude", multiple=True, metavar="LAYER", help="Layer (name or pattern) to keep in floating point.")
@options.existing
@click.option(
    "--recovered", default="use", show_default=True, metavar="POLICY",
    help="What calibrate --recover left beside the table: use it for int8, or ignore it.",
)  # fmt: skip
@click.option(
    "--shapes",
    multiple=True,
    metavar="NAME:DIMS",
    help="Impose an input's shape, such as input:1x3x224x224; for TensorRT also a range, NAME:MIN:OPT:MAX.",
)
@click.option(
    "--network", metavar="MODULE:FUNCTION", help="TensorRT: Python code that makes the network, in place of a model."
)
@options.tensorrt
@options.calibration
@options.out("engines")
@options.common
def command(
    model: Path | None,
    table: Path | None,
    precisions: str,
    method: str | None,
    target: str,
    backend: str,
    exclude: tuple[str, ...],
    existing: str,
    recovered: str,
    shapes: tuple[str, ...],
    network: str | None,
    tensorrt: BuildFlags,
    calibration: options.CalibrationFlags,
    out: Path,
    console: Console,
) -> None:
    """Build engine variants, each with a sidecar that says what was requested and what was proved.

    \b
    Example:
      quantlab build --model net.onnx --table calibration/calibration.json --precisions fp32,fp16,int8
      quantlab build --backend tensorrt-rtx --shapes input:1x3x224x224:8x3x224x224:32x3x224x224
    """  # noqa: D301
    from quantlab.calibrators import CalibrationTable
    from quantlab.documents import dump_json
    from quantlab.engines.tensorrt.flavour import FLAVOURS
    from quantlab.engines.tensorrt.profiles import ShapeFlags, parse_shape_flags
    from quantlab.engines.variant import RECOVERABLE, Variant
    from quantlab.errors import ConfigError
    from quantlab.records import to_plain
    from quantlab.workflow.build import (
        build_networks,
        build_variants,
        check_backend,
        check_table,
        existing_policy,
        parse_precisions,
        recovered_policy,
        target_for,
    )
    from quantlab.workflow.native_calibration import check_request, open_calibration
    from quantlab.workflow.recovery import find_recovery
    from quantlab.workflow.sources import find_model, open_for_engine, open_model

    wanted = parse_precisions(precisions)
    profile, policy, use_recovered = target_for(target), existing_policy(existing), recovered_policy(recovered)
    flags = parse_shape_flags(shapes)
    build_options = tensorrt.options(flags.profiles)
    request = _calibration_request(calibration)
    check_request(request, backend, build_options, wanted)
    check_backend(backend, build_options)
    ranges = calibrated = CalibrationTable.load(table) if table else None
    if ranges is not None and method is not None:
        ranges = ranges.with_method(method)
    if network is not None:
        if model is not None or flags.imposed or request.given:
            got = "--model" if model is not None else request.given or "--shapes with one shape"
            raise ConfigError("--network makes the network, inputs and all", got=f"{got} too", expected="one of them")
        sidecars = build_networks(network, backend, wanted, out, console, build_options)
    else:
        imposed = flags.imposed or (dict(ranges.provenance.shapes) if ranges else {})
        path = find_model(model, Path())
        if backend in FLAVOURS:
            prepared = open_for_engine(path, ShapeFlags(imposed, flags.profiles), console)
        else:
            prepared = open_model(path, imposed, console)
        found = None
        if table is not None and calibrated is not None and use_recovered and set(wanted) & RECOVERABLE:
            check_table(prepared, calibrated)
            found = find_recovery(table, calibrated, prepared, console)
        variants = [
            Variant(prepared, backend, precision, profile, ranges, exclude, policy, found) for precision in wanted
        ]
        native = open_calibration(request, prepared, console)
        sidecars = build_variants(variants, out, console, build_options, native)
    for sidecar in sidecars:
        for degradation in sidecar.degradations:
            console.warn(degradation)
    text = "\n".join(f"wrote {out / sidecar.file}" for sidecar in sidecars)
    console.result(text, dump_json({"schema": "quantlab.build/1", "engines": [to_plain(s) for s in sidecars]}))


def _calibration_request(flags: options.CalibrationFlags) -> CalibrationRequest:
    from quantlab.errors import ConfigError
    from quantlab.workflow.native_calibration import CalibrationRequest
    from quantlab.workflow.sources import DataRequest, thread_count

    if flags.data is None:
        for flag, value in (("--labels", flags.labels), ("--preprocess", flags.preprocess), ("--limit", flags.limit)):
            if value is not None:
                raise ConfigError(f"{flag} is about samples, and there are none", got=str(value), expected="--data too")
        return CalibrationRequest(None, flags.calibrator, flags.calibration_cache)
    workers = thread_count(flags.threads)
    data = DataRequest(flags.data, flags.labels, flags.limit, flags.seed, workers, flags.preprocess)
    return CalibrationRequest(data, flags.calibrator, flags.calibration_cache)
