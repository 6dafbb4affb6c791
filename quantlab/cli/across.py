"""``quantlab compare --across`` and ``--layers``: whose error it is, and where in the graph it is made."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console
from quantlab.cli.merging import stated

OWN = "engines"
"""The word after ``--across`` that runs engine files in their own backends."""

across = click.option(
    "--across",
    metavar="LIST",
    help=f"Run one .qdq.onnx file in these backends and tell their own errors; or {OWN}: each engine file in its own.",
)
layers = click.option(
    "--layers", type=click.IntRange(1, 1_000_000), metavar="N", help="Error of every quantized tensor, on N samples."
)
model = click.option(
    "--model", type=options.PATH, help="With --across or --layers: the FP32 model of a .qdq.onnx file."
)
table = click.option("--table", type=options.PATH, help="With --layers and --model: look into what this table makes.")

_OF_COMPARISON = (
    "reference", "task", "task_option", "metric", "slices", "slice_by", "latency_batch", "latency_seconds", "plugin"
)  # fmt: skip
_OF_LOOKING = ("model", "table", "target", "kind")


def check_flags(backends: str | None, samples: int | None) -> None:
    """Refuse flags that do not go together.

    Raises:
        click.UsageError: If both modes are asked for, or a flag of another mode is given.
    """
    context = click.get_current_context()
    if backends is not None and samples is not None:
        raise click.UsageError("--across and --layers are two comparisons: ask for one at a time", context)
    mode = "--across" if backends is not None else "--layers" if samples is not None else None
    refused = _OF_LOOKING if mode is None else _OF_COMPARISON
    if mode == "--layers":
        refused = (*refused, "limit", "batch_size")
    if mode == "--across":
        refused = (*refused, "table", "target", "kind")
    for parameter in context.command.params:
        if parameter.name in refused and stated(parameter.name):
            flag = parameter.opts[-1]
            raise click.UsageError(
                f"{flag} needs --across or --layers" if mode is None else f"{mode} takes no {flag}", context
            )


def run_across(
    engines: tuple[Path, ...],
    backends: str,
    original: Path | None,
    data: str,
    labels: Path | None,
    preprocess: str | None,
    limit: int | None,
    seed: int,
    batch_size: int,
    threads: int,
    out: Path,
    console: Console,
) -> None:
    """Make the truth table, write its files, and show it."""
    from quantlab.errors import ConfigError
    from quantlab.files import check_folder
    from quantlab.harness.truth import TruthSettings
    from quantlab.reports import render
    from quantlab.statistics.bootstrap import Resampling
    from quantlab.workflow.sources import DataRequest, thread_count
    from quantlab.workflow.truth import across_backends, across_engines, parse_backends, write_truth

    workers = thread_count(threads)
    request = DataRequest(data, labels, limit, seed, workers, preprocess)
    settings = TruthSettings(batch_size, workers, Resampling(seed=seed))
    check_folder(out)
    if backends == OWN:
        truth = across_engines(engines or (Path("engines"),), original, request, settings, console)
    elif len(engines) != 1:
        raise ConfigError(
            "--across runs one Q/DQ file in several backends",
            got=f"{len(engines)} files",
            expected=f"one .qdq.onnx file, or --across {OWN} for engine files",
        )
    else:
        truth = across_backends(engines[0], original, parse_backends(backends), request, settings, console)
    paths = write_truth(out, truth)
    for degradation in truth.degradations:
        console.warn(degradation)
    text = render(truth, "terminal", console.style)
    console.result(text + "\n" + "\n".join(f"wrote {path}" for path in paths), truth.to_json())


def run_layers(
    engines: tuple[Path, ...],
    samples: int,
    original: Path | None,
    calibration: Path | None,
    target: str,
    kind: str,
    data: str,
    labels: Path | None,
    preprocess: str | None,
    seed: int,
    threads: int,
    out: Path,
    console: Console,
) -> None:
    """Look into every quantized graph, write the files, and show them."""
    from quantlab.errors import ConfigError
    from quantlab.files import check_folder
    from quantlab.reports import render
    from quantlab.workflow.build import quantization_kind, target_for
    from quantlab.workflow.layer_drift import (
        layers_document,
        layers_of_engines,
        layers_of_file,
        layers_of_table,
        write_layers,
    )
    from quantlab.workflow.sources import DataRequest, thread_count

    workers = thread_count(threads)
    request = DataRequest(data, labels, samples, seed, workers, preprocess)
    check_folder(out)
    if calibration is not None:
        if original is None or engines:
            raise ConfigError("--table needs the model alone", expected="--layers N --table FILE --model FILE")
        profile, wanted = target_for(target), quantization_kind(kind)
        drifts = layers_of_table(calibration, original, profile, wanted, request, workers, console)
    elif original is not None:
        if len(engines) != 1:
            raise ConfigError("--layers with --model looks into one Q/DQ file", got=f"{len(engines)} files")
        drifts = layers_of_file(engines[0], original, request, workers, console)
    else:
        drifts = layers_of_engines(engines or (Path("engines"),), request, workers, console)
    paths = write_layers(out, drifts)
    for drift in drifts:
        for degradation in drift.degradations:
            console.warn(degradation)
    text = "\n".join(render(drift, "terminal", console.style) for drift in drifts)
    console.result(text + "\n" + "\n".join(f"wrote {path}" for path in paths), layers_document(drifts))
