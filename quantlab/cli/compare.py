"""``quantlab compare``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="Variants and data to a drift and latency table.")
@click.argument("engines", nargs=-1, type=options.PATH)
@options.data
@options.labels
@options.preprocess
@click.option("--reference", metavar="NAME", help="Variant to compare with. Default: the fp32 one.")
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
    limit: int | None,
    batch_size: int,
    latency_batch: int,
    latency_seconds: float,
    plugin: tuple[str, ...],
    threads: int,
    seed: int,
    out: Path,
    console: Console,
) -> None:
    """Compare ENGINES (files, or a folder that quantlab build wrote; default: engines/) with the FP32 one.

    \b
    Example:
      quantlab compare engines/ --data val/ -o comparison/
    """  # noqa: D301
    from quantlab.files import check_folder
    from quantlab.harness.compare import CompareSettings
    from quantlab.reports import render
    from quantlab.workflow.compare import compare_files, latency_settings, write_comparison
    from quantlab.workflow.sources import DataRequest, thread_count

    workers = thread_count(threads)
    request = DataRequest(data, labels, limit, seed, workers, preprocess)
    settings = CompareSettings(batch_size, latency_batch, workers, seed, latency_settings(latency_seconds, seed))
    check_folder(out)
    libraries = tuple(map(Path, plugin))
    comparison = compare_files(engines or (Path("engines"),), reference, request, settings, console, libraries)
    paths = write_comparison(out, comparison)
    for degradation in comparison.degradations:
        console.warn(degradation)
    text = render(comparison, "terminal", console.style)
    console.result(text + "\n" + "\n".join(f"wrote {path}" for path in paths), comparison.to_json())
