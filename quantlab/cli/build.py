"""``quantlab build``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="Model and calibration table to engine variants.")
@options.model
@click.option("--table", type=options.PATH, help="calibration.json; needed for int8 and fp8.")
@click.option("--precisions", default="fp32,tf32,fp16,int8", show_default=True, metavar="LIST", help="What to build.")
@click.option("--method", metavar="NAME", help="Range method. Default: the table's.")
@options.target
@options.backend
@click.option("--exclude", multiple=True, metavar="LAYER", help="Layer (name or pattern) to keep in floating point.")
@options.existing
@options.shapes
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
    shapes: tuple[str, ...],
    out: Path,
    console: Console,
) -> None:
    """Build engine variants, each with a sidecar that says what was requested and what was proved.

    \b
    Example:
      quantlab build --model net.onnx --table calibration/calibration.json --precisions fp32,fp16,int8
    """  # noqa: D301
    from quantlab.calibrators import CalibrationTable
    from quantlab.documents import dump_json
    from quantlab.engines.variant import Variant
    from quantlab.records import to_plain
    from quantlab.workflow.build import build_variants, builder_for, existing_policy, parse_precisions, target_for
    from quantlab.workflow.sources import find_model, open_model, parse_shapes

    wanted = parse_precisions(precisions)
    profile, policy = target_for(target), existing_policy(existing)
    builder_for(backend)
    ranges = CalibrationTable.load(table) if table else None
    if ranges is not None and method is not None:
        ranges = ranges.with_method(method)
    imposed = parse_shapes(shapes) or (dict(ranges.provenance.shapes) if ranges else {})
    prepared = open_model(find_model(model, Path()), imposed, console)
    variants = [Variant(prepared, backend, precision, profile, ranges, exclude, policy) for precision in wanted]
    sidecars = build_variants(variants, out, console)
    for sidecar in sidecars:
        for degradation in sidecar.degradations:
            console.warn(degradation)
    text = "\n".join(f"wrote {out / sidecar.file}" for sidecar in sidecars)
    console.result(text, dump_json({"schema": "quantlab.build/1", "engines": [to_plain(s) for s in sidecars]}))
