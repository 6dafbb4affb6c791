"""``quantlab compare``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import across as lenses
from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="Variants and data to a drift and latency table.")
@click.argument("engines", nargs=-1, type=options.PATH)
@options.data
@options.labels
@options.preprocess
@click.option("--reference", metavar="NAME", help="Variant to compare with. Default: the fp32 one.")
@click.option(
    "--task",
    metavar="NAME",
    help="classify, outputs, detect, segment or regress. Default: classify if an output looks like class scores.",
)
@click.option("--task-option", multiple=True, metavar="KEY=VALUE", help="Setting of the task, such as decoder=yolov8.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Your own figures, in place of a task's.")
@click.option("--slices", type=options.PATH, metavar="FILE.csv", help="Columns file,... to tell the figures by.")
@click.option(
    "--slice-by",
    type=click.Choice(["class", "none"]),
    default="class",
    show_default=True,
    help="Whether a classifier's figures are told class by class.",
)
@options.limit
@options.batch_size
@click.option(
    "--latency-batch", type=click.IntRange(1, 65536), default=1, show_default=True, help="Samples a timed call."
)
@click.option(
    "--latency-seconds",
    type=click.FloatRange(0, 86400),
    default=10.0,
    show_default=True,
    help="Timing budget; 0 for none.",
)
@options.plugin
@lenses.across
@lenses.layers
@lenses.model
@lenses.table
@options.target
@options.kind
@options.threads
@options.seed
@options.out("comparison")
@options.common
def command(
    engines: tuple[Path, ...],
    data: str,
    labels: Path | None,
    preprocess: str | None,
    reference: str | None,
    task: str | None,
    task_option: tuple[str, ...],
    metric: str | None,
    slices: Path | None,
    slice_by: str,
    limit: int | None,
    batch_size: int,
    latency_batch: int,
    latency_seconds: float,
    plugin: tuple[str, ...],
    across: str | None,
    layers: int | None,
    model: Path | None,
    table: Path | None,
    target: str,
    kind: str,
    threads: int,
    seed: int,
    out: Path,
    console: Console,
) -> None:
    """Compare ENGINES (files, or a folder that quantlab build wrote; default: engines/) with the FP32 one.

    \b
    Example:
      quantlab compare engines/ --data val/ -o comparison/
      quantlab compare m.qdq.onnx --across onnxruntime,openvino --model m.onnx --data val/
      quantlab compare engines/ --layers 8 --data val/
    """  # noqa: D301
    lenses.check_flags(across, layers)
    if across is not None:
        lenses.run_across(
            engines, across, model, data, labels, preprocess, limit, seed, batch_size, threads, out, console
        )
        return
    if layers is not None:
        lenses.run_layers(
            engines, layers, model, table, target, kind, data, labels, preprocess, seed, threads, out, console
        )
        return
    from quantlab.files import check_folder
    from quantlab.harness.compare import CompareSettings
    from quantlab.harness.samples import SAMPLES_NAME
    from quantlab.harness.tasks.registry import TaskRequest
    from quantlab.reports import render
    from quantlab.workflow.compare import compare_files, latency_settings, parse_options, write_comparison
    from quantlab.workflow.sources import DataRequest, thread_count

    workers = thread_count(threads)
    request = DataRequest(data, labels, limit, seed, workers, preprocess)
    settings = CompareSettings(
        batch_size,
        latency_batch,
        workers,
        seed,
        latency_settings(latency_seconds, seed),
        TaskRequest(task, metric, options=parse_options(task_option)),
        by_class=slice_by == "class",
    )
    check_folder(out)
    samples = out / SAMPLES_NAME
    comparison = compare_files(
        engines or (Path("engines"),),
        reference,
        request,
        settings,
        console,
        tuple(map(Path, plugin)),
        slices,
        samples,
    )
    paths = (*write_comparison(out, comparison), samples)
    for degradation in comparison.degradations:
        console.warn(degradation)
    text = render(comparison, "terminal", console.style)
    console.result(text + "\n" + "\n".join(f"wrote {path}" for path in paths), comparison.to_json())
