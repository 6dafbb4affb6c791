"""``quantlab bench``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="Latency alone, with every figure that trtexec reports.")
@click.argument("engines", nargs=-1, type=options.PATH)
@click.option("--reference", metavar="NAME", help="Engine that ratios are taken to. Default: the fp32 one.")
@options.optional_data
@options.preprocess
@options.shapes
@click.option("--batch", default="", metavar="N[,N...]", help="Samples a call. Default: the fixed batch, or 1.")
@click.option("--threads", default="0", metavar="N[,N...]", help="Threads of each engine. Default: all processors.")
@click.option(
    "--streams", default="1", show_default=True, metavar="N[,N...]", help="Callers at once; contexts on a GPU."
)
@click.option(
    "--seconds",
    type=float,
    default=10.0,
    show_default=True,
    help="Budget of the interleaved timing, for each batch and number of threads; 0 for none.",
)
@click.option(
    "--query-seconds",
    type=float,
    default=3.0,
    show_default=True,
    help="Queries of each engine by itself, as trtexec makes them; 0 for none.",
)
@click.option(
    "--processes", type=click.IntRange(1, 100), default=1, show_default=True, help="Repeat in fresh processes."
)
@click.option("--end-to-end", is_flag=True, help="From files to outputs too: decoding, preprocessing and run.")
@click.option("--rebuilds", type=click.IntRange(0, 100), default=0, help="Build each engine N times; needs --model.")
@options.model
@click.option("--table", type=options.PATH, help="With --rebuilds: calibration table of the engines.")
@click.option("--graph/--no-graph", default=True, show_default=True, help="On a GPU: launch CUDA graphs.")
@click.option("--transfers/--no-transfers", default=True, show_default=True, help="On a GPU: copy in every query.")
@click.option("--spin", is_flag=True, help="On a GPU: spin while waiting.")
@click.option("--export-times", type=options.PATH, metavar="DIR", help="Write the queries as trtexec does.")
@click.option("--profile", is_flag=True, help="Layer by layer too, and memory and load time in fresh processes.")
@click.option("--against", type=options.PATH, metavar="FILE", help="Compare with a saved bench.json.")
@click.option("--allow-env-mismatch", is_flag=True, help="With --against: even if the environments differ.")
@options.plugin
@options.seed
@options.out("bench")
@options.common
def command(
    engines: tuple[Path, ...],
    reference: str | None,
    data: str | None,
    preprocess: str | None,
    shapes: tuple[str, ...],
    batch: str,
    threads: str,
    streams: str,
    seconds: float,
    query_seconds: float,
    processes: int,
    end_to_end: bool,
    rebuilds: int,
    model: Path | None,
    table: Path | None,
    graph: bool,
    transfers: bool,
    spin: bool,
    export_times: Path | None,
    profile: bool,
    against: Path | None,
    allow_env_mismatch: bool,
    plugin: tuple[str, ...],
    seed: int,
    out: Path,
    console: Console,
) -> None:
    """Measure the latency of ENGINES: files, folders that quantlab build wrote (default: engines/), files of trtexec.

    Without --data, engines are timed on seeded random numbers.

    \b
    Examples:
      quantlab bench engines/ --batch 1,8,32 --threads 1,2
      quantlab bench engines/fp32.onnx engines/int8.onnx trtexec-times.json
      quantlab bench engines/ --against last-week/bench.json
    """  # noqa: D301
    from quantlab.errors import ConfigError
    from quantlab.files import check_folder
    from quantlab.harness.bench import BenchSettings
    from quantlab.reports import render
    from quantlab.workflow.bench import BenchRequest, bench_files, parse_numbers, write_bench
    from quantlab.workflow.bench_rebuilds import RebuildRequest
    from quantlab.workflow.sources import DataRequest, parse_shapes, thread_count

    if not rebuilds and (model is not None or table is not None):
        given = "--model" if model is not None else "--table"
        raise ConfigError(f"{given} says what to build again", expected="--rebuilds N too")
    if allow_env_mismatch and against is None:
        raise ConfigError("--allow-env-mismatch is about a saved bench", expected="--against FILE too")
    if data is None and preprocess is not None:
        raise ConfigError("--preprocess is about samples, and there are none", expected="--data too")
    if data is not None and shapes:
        raise ConfigError("--shapes is for random numbers", got="--data too", expected="one of them")
    workers = (thread_count(0),) if threads == "0" else parse_numbers(threads, "--threads")
    libraries = tuple(map(Path, plugin))
    settings = BenchSettings(
        batches=parse_numbers(batch, "--batch") if batch else (),
        threads=workers,
        streams=parse_numbers(streams, "--streams"),
        seconds=seconds,
        query_seconds=query_seconds,
        processes=processes,
        rebuilds=rebuilds,
        graph=graph,
        transfers=transfers,
        spin=spin,
        seed=seed,
        end_to_end=end_to_end,
    )
    request = BenchRequest(
        engines=engines or (Path("engines"),),
        settings=settings,
        reference=reference,
        data=DataRequest(data, seed=seed, threads=max(workers), preprocess=preprocess) if data is not None else None,
        shapes=parse_shapes(shapes),
        rebuild=RebuildRequest(rebuilds, model, table, libraries) if rebuilds else None,
        against=against,
        allow_mismatch=allow_env_mismatch,
        export=export_times,
        profile=profile,
        plugins=libraries,
    )
    check_folder(out)
    result = bench_files(request, console)
    paths = write_bench(out, result)
    bench = result.bench
    for degradation in bench.degradations:
        console.warn(degradation)
    text = render(bench, "terminal", console.style)
    if result.profiles is not None:
        text += "\n" + render(result.profiles, "terminal", console.style)
    console.result(text + "\n" + "\n".join(f"wrote {path}" for path in paths), bench.to_json())
