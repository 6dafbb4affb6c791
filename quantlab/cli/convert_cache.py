"""``quantlab convert-cache``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="TensorRT calibration caches, tables and Q/DQ models into each other.")
@click.argument("file", type=options.PATH)
@click.option(
    "-o", "--out", type=options.PATH, required=True,
    help="File to write; its ending says what: .calib, .json, .onnx, .flatbuffers, .txt, .ort.json. "
    "With --to, a folder will do.",
)  # fmt: skip
@click.option(
    "--to", metavar="KIND", help="tensorrt-cache, table, qdq, ort-flatbuffers, ort-text or ort-json. Default: by name."
)
@options.model
@options.target
@click.option(
    "--tensorrt", metavar="VERSION", help="TensorRT version in a cache's header. Default: the input's, or 10.16.0."
)
@click.option("--algorithm", metavar="NAME", help="Algorithm in a cache's header. Default: the input's, or by method.")
@click.option("--method", metavar="NAME", help="Range method to take from a calibration table. Default: the table's.")
@options.shapes
@click.option("--force", is_flag=True, help="Replace an output that is there already.")
@options.common
def command(
    file: Path,
    out: Path,
    to: str | None,
    model: Path | None,
    target: str,
    tensorrt: str | None,
    algorithm: str | None,
    method: str | None,
    shapes: tuple[str, ...],
    force: bool,
    console: Console,
) -> None:
    """Turn the ranges in FILE into another form, and say which tensors of --model they fit.

    FILE is a TensorRT calibration cache, a calibration.json, a Q/DQ model with symmetric INT8 activations, or a table
    of ONNX Runtime's TensorRT provider; so is what is written. A cache gets a provenance file beside it.

    \b
    Examples:
      quantlab convert-cache net.calib --model net.onnx -o net.qdq.onnx     TensorRT 10 to 11
      quantlab convert-cache net.qdq.onnx -o net.calib --tensorrt 8.6.1     and back
      quantlab convert-cache calibration.json --method entropy -o net.flatbuffers
    """  # noqa: D301
    from quantlab.calibrators.tensorrt_cache import Algorithm
    from quantlab.workflow.build import target_for
    from quantlab.workflow.convert import ConvertSettings, conversion_document, conversion_text, convert_ranges
    from quantlab.workflow.ranges import RangeKind
    from quantlab.workflow.sources import parse_shapes

    settings = ConvertSettings(
        RangeKind.of(to) if to is not None else None,
        target_for(target),
        tensorrt,
        Algorithm.of(algorithm) if algorithm is not None else None,
        method,
        parse_shapes(shapes),
        force,
    )
    done = convert_ranges(file, out, model, settings, console)
    console.result(conversion_text(done), conversion_document(done))
