"""Flags that mean the same in every verb."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from quantlab.cli.console import Console, Loudness
from quantlab.cli.main import State
from quantlab.engines.tensorrt.options import BuildFlags

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

model = click.option("--model", type=PATH, help="FP32 ONNX model. Default: the recipe's, or the only .onnx file here.")
shapes = click.option(
    "--shapes", multiple=True, metavar="NAME:DIMS", help="Impose an input's shape, for example input:1x3x224x224."
)
_DATA = "Folder of images, glob, list file, .npz, .npy, IDX file, package.module:factory, or torchvision:NAME."
data = click.option("--data", required=True, metavar="SOURCE", help=_DATA)
optional_data = click.option("--data", metavar="SOURCE", help=_DATA)
labels = click.option(
    "--labels",
    type=PATH,
    help="CSV with the columns file,label, one label a line, COCO JSON, or truths of another --task.",
)
preprocess = click.option("--preprocess", metavar="NAME|FILE", help="Preset, or a TOML file. Default: the model's own.")
limit = click.option("--limit", type=int, metavar="N", help="Use a seeded, class-balanced subset of N samples.")
seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of every random choice."
)
threads = click.option("--threads", type=int, default=0, metavar="N", help="Threads. Default: all processors.")
batch_size = click.option(
    "--batch-size", type=click.IntRange(1, 65536), default=32, show_default=True, help="Samples a call."
)
target = click.option(
    "--target", default="tensorrt", show_default=True, metavar="NAME", help="Q/DQ rules: tensorrt or onnxruntime."
)
kind = click.option(
    "--kind", default="int8", show_default=True, metavar="NAME", help="What is quantized: int8, fp8 or int8-weights."
)
existing = click.option(
    "--existing",
    default="refuse",
    show_default=True,
    metavar="POLICY",
    help="Q/DQ pairs that the model holds: refuse it; complete: keep them, quantize the rest; keep: add nothing.",
)
backend = click.option(
    "--backend",
    default="onnxruntime",
    show_default=True,
    metavar="NAME",
    help="Backend to build for: onnxruntime, onnxruntime-cuda, openvino, tensorrt or tensorrt-rtx.",
)
plugin = click.option("--plugin", multiple=True, metavar="LIB.so", help="TensorRT: library with own operators.")
policy = click.option(
    "--policy",
    default="quantlab:default",
    show_default=True,
    metavar="FILE|NAME",
    help="Policy file or built-in policy.",
)


def out(default: str) -> Callable[[F], F]:
    """The ``-o/--out`` flag."""
    return click.option("-o", "--out", type=PATH, default=default, show_default=True, help="Folder for the outputs.")


_TENSORRT = (
    click.option("--workspace", metavar="SIZE", help="TensorRT: memory that kernels may use, such as 2GiB."),
    click.option("--memory-pool", multiple=True, metavar="POOL:SIZE", help="TensorRT: limit of another memory pool."),
    click.option("--timing-cache", metavar="FILE", help="TensorRT: kernel timings; read, then written."),
    click.option("--optimization-level", type=int, metavar="N", help="TensorRT: 0 builds fastest, 5 runs fastest."),
    click.option("--version-compatible", is_flag=True, help="TensorRT: later versions may load the engine."),
    click.option(
        "--hardware-compatibility", metavar="LEVEL", help="TensorRT: ampere-plus or same-compute-capability."
    ),
    click.option(
        "--compute-capability", metavar="LIST", help="TensorRT-RTX: GPUs to build for: current, or such as sm89,sm120."
    ),
    click.option("--dla-core", type=int, metavar="N", help="TensorRT 10: run on this DLA, the rest on the GPU."),
    plugin,
    click.option("--refit", is_flag=True, help="TensorRT: weights can be exchanged in the engine."),
    click.option("--strip", is_flag=True, help="TensorRT: leave out weights that a refit can bring."),
    click.option("--sparse-weights", is_flag=True, help="TensorRT: allow kernels for 2:4 sparse weights."),
    click.option(
        "--typing", default="strong", show_default=True, metavar="NAME",
        help="TensorRT 10: strong: the graph's types decide; weak: TensorRT does, layer by layer.",
    ),
    click.option("--max-aux-streams", type=int, metavar="N", help="TensorRT: streams besides the main one."),
)  # fmt: skip


def tensorrt(function: F) -> F:
    """Add the flags of TensorRT's builders and pass them as ``tensorrt``, a `BuildFlags`."""
    return _gather(function, "tensorrt", _TENSORRT, BuildFlags)


@dataclass(frozen=True, slots=True)
class CalibrationFlags:
    """What is given to TensorRT's own calibration.

    Attributes:
        data: Source of the samples.
        labels: Labels file, by which a subset is balanced.
        preprocess: Preset name or file.
        limit: Subset of so many samples.
        seed: Of the subset.
        threads: Decoders.
        calibrator: Name of TensorRT's calibrator.
        calibration_cache: Cache to read or write.
    """

    data: str | None
    labels: Path | None
    preprocess: str | None
    limit: int | None
    seed: int
    threads: int
    calibrator: str | None
    calibration_cache: Path | None


def calibration(function: F) -> F:
    """Add the flags of TensorRT's own calibration and pass them as ``calibration``, a `CalibrationFlags`."""
    flags = (
        click.option("--data", metavar="SOURCE", help=_DATA),
        labels,
        preprocess,
        limit,
        seed,
        threads,
        click.option(
            "--calibrator",
            metavar="NAME",
            help="TensorRT 10, --typing weak: entropy2 (the default), minmax, entropy or legacy; calibrates on --data.",
        ),
        click.option(
            "--calibration-cache",
            type=PATH,
            metavar="FILE",
            help="TensorRT 10, --typing weak: calibration cache, read if it is there and written if not.",
        ),
    )
    return _gather(function, "calibration", flags, CalibrationFlags)


def _gather(function: F, name: str, flags: Sequence[Callable[[Any], Any]], kind: type[Any]) -> F:
    """Add flags, and pass what they give as one argument of that name and type, whose fields are theirs."""

    def wrapped(**arguments: Any) -> Any:
        given = {field.name: arguments.pop(field.name) for field in fields(kind)}
        return function(**{name: kind(**given)}, **arguments)

    result: Any = functools.update_wrapper(wrapped, function)
    for flag in reversed(flags):
        result = flag(result)
    return result  # type: ignore[no-any-return]


def common(function: F) -> F:
    """Add ``--json --quiet --verbose --debug`` and pass a `Console` as ``console``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout and nothing else.")
    @click.option("-q", "--quiet", is_flag=True, help="No narration.")
    @click.option("-v", "--verbose", is_flag=True, help="More narration.")
    @click.option("--debug", is_flag=True, help="Show tracebacks of errors, and everything that TensorRT logs.")
    @click.pass_obj
    def wrapped(state: State, /, *, as_json: bool, quiet: bool, verbose: bool, debug: bool, **arguments: Any) -> Any:
        state.debug, state.json = debug, as_json
        loudness = Loudness.QUIET if quiet else (Loudness.VERBOSE if verbose else Loudness.NORMAL)
        return function(console=Console(loudness, as_json, debug=debug), **arguments)

    return functools.update_wrapper(wrapped, function)  # type: ignore[return-value]
