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
    network: str | None,
    tensorrt: options.TensorRTFlags,
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
    from quantlab.engines.tensorrt.options import BuildOptions, parse_memory_pools, parse_typing
    from quantlab.engines.tensorrt.profiles import ShapeFlags, parse_shape_flags
    from quantlab.engines.variant import Variant
    from quantlab.errors import ConfigError
    from quantlab.records import to_plain
    from quantlab.workflow.build import (
        build_networks,
        build_variants,
        check_backend,
        existing_policy,
        parse_precisions,
        target_for,
    )
    from quantlab.workflow.sources import find_model, open_for_engine, open_model

    wanted = parse_precisions(precisions)
    profile, policy = target_for(target), existing_policy(existing)
    flags = parse_shape_flags(shapes)
    build_options = BuildOptions(
        profiles=flags.profiles,
        memory_pools=parse_memory_pools(tensorrt.memory_pool, tensorrt.workspace),
        timing_cache=tensorrt.timing_cache,
        optimization_level=tensorrt.optimization_level,
        version_compatible=tensorrt.version_compatible,
        hardware_compatibility=tensorrt.hardware_compatibility,
        compute_capabilities=tuple(filter(None, (tensorrt.compute_capability or "").split(","))),
        dla_core=tensorrt.dla_core,
        plugins=tensorrt.plugin,
        refit=tensorrt.refit,
        strip_plan=tensorrt.strip,
        sparse_weights=tensorrt.sparse_weights,
        typing=parse_typing(tensorrt.typing),
        max_aux_streams=tensorrt.max_aux_streams,
    )
    check_backend(backend, build_options)
    ranges = CalibrationTable.load(table) if table else None
    if ranges is not None and method is not None:
        ranges = ranges.with_method(method)
    if network is not None:
        if model is not None or flags.imposed:
            got = "--model" if model is not None else "--shapes with one shape"
            raise ConfigError("--network makes the network, inputs and all", got=f"{got} too", expected="one of them")
        sidecars = build_networks(network, backend, wanted, out, console, build_options)
    else:
        imposed = flags.imposed or (dict(ranges.provenance.shapes) if ranges else {})
        path = find_model(model, Path())
        if backend in FLAVOURS:
            prepared = open_for_engine(path, ShapeFlags(imposed, flags.profiles), console)
        else:
            prepared = open_model(path, imposed, console)
        variants = [Variant(prepared, backend, precision, profile, ranges, exclude, policy) for precision in wanted]
        sidecars = build_variants(variants, out, console, build_options)
    for sidecar in sidecars:
        for degradation in sidecar.degradations:
            console.warn(degradation)
    text = "\n".join(f"wrote {out / sidecar.file}" for sidecar in sidecars)
    console.result(text, dump_json({"schema": "quantlab.build/1", "engines": [to_plain(s) for s in sidecars]}))
