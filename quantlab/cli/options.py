"""Flags that mean the same in every verb."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from quantlab.cli.console import Console, Loudness
from quantlab.cli.main import State

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)

model = click.option("--model", type=PATH, help="FP32 ONNX model. Default: the recipe's, or the only .onnx file here.")
shapes = click.option(
    "--shapes", multiple=True, metavar="NAME:DIMS", help="Impose an input's shape, for example input:1x3x224x224."
)
data = click.option(
    "--data",
    required=True,
    metavar="SOURCE",
    help="Folder of images, glob, list file, .npz, .npy, IDX file, package.module:factory, or torchvision:NAME.",
)
labels = click.option("--labels", type=PATH, help="CSV with the columns file,label, or one label a line.")
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
    help="Q/DQ pairs that the model holds: refuse it, or complete: keep them and quantize the rest.",
)
backend = click.option(
    "--backend", default="onnxruntime", show_default=True, metavar="NAME", help="Backend to build for."
)
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


def common(function: F) -> F:
    """Add ``--json --quiet --verbose --debug`` and pass a `Console` as ``console``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout and nothing else.")
    @click.option("-q", "--quiet", is_flag=True, help="No narration.")
    @click.option("-v", "--verbose", is_flag=True, help="More narration.")
    @click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
    @click.pass_obj
    def wrapped(state: State, /, *, as_json: bool, quiet: bool, verbose: bool, debug: bool, **arguments: Any) -> Any:
        state.debug, state.json = debug, as_json
        loudness = Loudness.QUIET if quiet else (Loudness.VERBOSE if verbose else Loudness.NORMAL)
        return function(console=Console(loudness, as_json), **arguments)

    return functools.update_wrapper(wrapped, function)  # type: ignore[return-value]
