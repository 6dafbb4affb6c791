"""A bench for people: the same tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quantlab.harness.bench import Bench
from quantlab.harness.bench_change import ChangeRow
from quantlab.harness.device_timing import EVENT_BOUNDARIES, GpuTimings
from quantlab.harness.end_to_end import EndToEnd
from quantlab.harness.measurement import Boundary, Latency
from quantlab.harness.queries import CUDA_EVENTS, HOST_CLOCK, QueryFigures
from quantlab.harness.rebuilds import Rebuilds
from quantlab.harness.trtexec import Spread
from quantlab.precision import Execution
from quantlab.reports.bench_frame import BenchLine, bench_lines
from quantlab.reports.cells import MISSING, digest, fixed, interval, mebibytes, plain, significant
from quantlab.reports.format import Style
from quantlab.reports.grid import GridColumn, grids
from quantlab.reports.lines import MIN_WIDTH, paint, wrap

_LAYERS = 10
_CELLS = Callable[[BenchLine], str]


@dataclass(frozen=True, slots=True)
class BenchTable:
    """One table.

    Attributes:
        title: What it shows.
        first: Heading of the first column.
        names: Its cells.
        columns: The others.
    """

    title: str
    first: str
    names: tuple[str, ...]
    columns: tuple[GridColumn, ...]


def bench_tables(bench: Bench) -> tuple[BenchTable, ...]:
    """Every table that has something to show."""
    lines = tuple(bench_lines(bench))
    tables = [
        *_interleaved(bench, lines),
        *(_on_gpu(bench, lines, boundary) for boundary in EVENT_BOUNDARIES),
        *_end_to_end(bench, lines),
        *_queries(bench, lines),
        *_energy(bench, lines),
        *_openings(bench),
        *_rebuilds(bench.rebuilds),
        *_changes(bench),
        *_profiles(bench),
    ]
    return tuple(table for table in tables if table.names and table.columns)


def bench_head(bench: Bench) -> str:
    """What was measured, on what and where."""
    host = bench.before.host
    gpus = f", {', '.join(gpu.name for gpu in bench.before.gpus)}" if bench.before.gpus else ""
    where = f"{host.processor}, {host.cpus} processors{gpus}, {bench.before.taken}"
    if bench.reference is None:
        n = len(bench.imported) + len(bench.imported_profiles)
        return f"{n} {'file' if n == 1 else 'files'} of trtexec, read on {where}"
    models = dict.fromkeys(f"{engine.model} ({digest(engine.model_sha256)})" for engine in bench.engines)
    settings = bench.settings
    threads, batches, streams = map(_list, (settings.threads, settings.batches, settings.streams))
    return (
        f"{', '.join(models)}: {len(bench.engines)} engines, reference {bench.reference}, on {bench.data}; "
        f"threads {threads}, batch {batches}, callers {streams}; {where}"
    )


def bench_notes(bench: Bench) -> Iterator[str]:
    """How to read the tables."""
    if any(engine.execution is Execution.EMULATED for engine in bench.engines):
        yield "(emulated): the time of float kernels that stand in for the precision, and not the precision's."
    for point in bench.interleaved:
        timings = point.timings
        setting = f" (t{point.threads} b{point.batch_size})" if len(bench.interleaved) > 1 else ""
        yield (
            f"Interleaved{setting}: ratio to {timings.reference}, A/A control {interval(timings.noise_floor, 3)}, "
            f"stopped by {timings.stop} after {timings.elapsed_s:.1f} s."
        )
    for on_gpu in bench.on_gpu:
        yield from _on_gpu_notes(bench, on_gpu)
    for whole in bench.end_to_end:
        yield from _end_to_end_notes(bench, whole)
    if any(row.figures.clock == HOST_CLOCK for row in bench.queries):
        yield "Queries on the host's clock: latency is the whole run, from inputs to outputs in memory."
    if any(row.figures.clock == CUDA_EVENTS for row in bench.queries):
        yield "Queries by CUDA events: latency is copies, compute and copies; see mode."
    if bench.change is not None:
        yield (
            f"Against the bench of {bench.change.taken}: what is between two runs is in no interval, so the change of "
            "the ratio to the reference says more than that of the time."
        )
        yield from (f"Differs: {difference}." for difference in bench.change.differences)
        yield from (f"Mind: {remark}." for remark in bench.change.remarks)


def _on_gpu_notes(bench: Bench, point: GpuTimings) -> Iterator[str]:
    setting = f" (t{point.threads} b{point.batch_size})" if len(bench.on_gpu) > 1 else ""
    controls = ", ".join(f"{one.boundary} {interval(one.noise_floor, 3)}" for one in point.timings)
    first = point.timings[0]
    yield (
        f"On the GPU, interleaved{setting}: {'CUDA graphs' if point.graph else 'kernels one by one'}, "
        f"{'with' if point.transfers else 'without'} copies, one query ahead, ratio to {first.reference}; A/A "
        f"controls: {controls}; stopped by {first.stop} after {first.elapsed_s:.1f} s."
    )


def _end_to_end_notes(bench: Bench, point: EndToEnd) -> Iterator[str]:
    timings, name = point.timings, point.timings.reference
    setting = f" (t{point.threads} b{point.batch_size})" if len(bench.end_to_end) > 1 else ""
    readers = f"{point.readers} threads" if point.readers > 1 else "the calling thread"
    yield (
        f"End to end{setting}: of {fixed(timings.latencies[name].median_ms, 1)} ms of {name}, "
        f"{fixed(point.reading.latencies[name].median_ms, 1)} ms ({fixed(100.0 * point.share(name), 0)} %) are "
        f"reading and preprocessing, in {readers}; {point.samples:,} samples in turn, the same for every engine; A/A "
        f"control {interval(timings.noise_floor, 3)}, stopped by {timings.stop} after {timings.elapsed_s:.1f} s."
    )
    if point is not bench.end_to_end[-1]:
        return
    if point.in_memory:
        yield "The data are one file of arrays, which is in memory: reading is copying and preprocessing, no file."
    else:
        yield "Every sample was read once before: what the file cache holds is read from memory, not from the disk."


def bench_warnings(bench: Bench) -> Iterator[str]:
    """Cautions of the bench and warnings of its timings, by code."""
    yield from map(str, bench.cautions)
    for point in bench.interleaved:
        setting = f"t{point.threads} b{point.batch_size}"
        for warning in point.timings.warnings:
            yield f"{warning.code}: {warning.variant or setting}: {warning.message}"
    for on_gpu in bench.on_gpu:
        setting = f"t{on_gpu.threads} b{on_gpu.batch_size}"
        for timings in on_gpu.timings:
            for warning in timings.warnings:
                yield f"{warning.code}: on the GPU, {timings.boundary}, {warning.variant or setting}: {warning.message}"
    for whole in bench.end_to_end:
        setting = f"t{whole.threads} b{whole.batch_size}"
        for warning in whole.timings.warnings:
            yield f"{warning.code}: end to end, {warning.variant or setting}: {warning.message}"


def render_terminal(bench: Bench, style: Style) -> str:
    """The tables, stacked where the width does not suffice, then notes and warnings."""
    width = max(style.width, MIN_WIDTH)
    lines = [*wrap(bench_head(bench), width), ""]
    for table in bench_tables(bench):
        first = GridColumn(table.first, tuple(map(plain, table.names)))
        for number, grid in enumerate(grids(first, table.columns, width)):
            lines += [paint(table.title if number == 0 else f"{table.title} (continued)", style, "bold"), *grid, ""]
    for note in bench_notes(bench):
        lines += wrap(plain(note), width)
    lines += ["", *_listed("Warnings", list(bench_warnings(bench)), width, style)]
    lines += _listed("Degradations", [str(degradation) for degradation in bench.degradations], width, style)
    return "\n".join(lines) + "\n"


def _listed(title: str, texts: Sequence[str], width: int, style: Style) -> Iterator[str]:
    if not texts:
        yield f"No {title.lower()}."
        return
    yield paint(f"{title} ({len(texts)})", style, "bold", "yellow")
    for text in texts:
        yield from wrap(plain(text), width, "  - ", "    ")


def _labels(bench: Bench, lines: Sequence[BenchLine], *, callers: bool) -> tuple[str, ...]:
    """Names, with the setting behind them where there are several; emulations are labelled."""
    settings = bench.settings
    several = (len(settings.threads) > 1, len(settings.batches) > 1, callers and len(settings.streams) > 1)

    def label(line: BenchLine) -> str:
        if line.engine is None:
            return line.name
        parts = zip("tbs", (line.threads, line.batch_size, line.streams), several, strict=True)
        setting = "".join(f" {letter}{value}" for letter, value, shown in parts if shown and value is not None)
        return line.name + (" (emulated)" if line.engine.execution is Execution.EMULATED else "") + setting

    return tuple(map(label, lines))


def _table(
    title: str, names: tuple[str, ...], lines: Sequence[BenchLine], columns: Sequence[tuple[str, _CELLS]]
) -> BenchTable:
    """A table of the columns that have something to show; words are aligned to the left."""
    made = [GridColumn(heading, tuple(map(cells, lines)), heading in _WORDS) for heading, cells in columns]
    return BenchTable(title, "engine", names, tuple(c for c in made if set(c.cells) != {MISSING}))


_WORDS = ("verdict", "mode", "method")


def _interleaved(bench: Bench, lines: Sequence[BenchLine]) -> Iterator[BenchTable]:
    timed = [line for line in lines if line.latency is not None]

    def of(value: Callable[[Latency], str]) -> _CELLS:
        return lambda line: MISSING if line.latency is None else value(line.latency)

    columns: list[tuple[str, _CELLS]] = [
        ("median ms", of(lambda t: fixed(t.median_ms, 3))),
        ("p90 ms", of(lambda t: fixed(t.p90_ms, 3))),
        ("p99 ms", of(lambda t: fixed(t.p99_ms, 3))),
        ("ratio", of(lambda t: fixed(t.ratio, 3))),
        ("interval", of(lambda t: interval(t.ratio_interval, 3))),
        ("verdict", of(lambda t: t.change.value if t.change else MISSING)),
        ("per s", of(lambda t: fixed(t.throughput_per_s, 1))),
    ]
    yield _table("Latency, engines interleaved", _labels(bench, timed, callers=False), timed, columns)


def _on_gpu(bench: Bench, lines: Sequence[BenchLine], boundary: Boundary) -> BenchTable:
    timed = [line for line in lines if boundary in line.on_gpu]

    def of(value: Callable[[Latency], str]) -> _CELLS:
        return lambda line: value(line.on_gpu[boundary])

    columns: list[tuple[str, _CELLS]] = [
        ("median ms", of(lambda t: fixed(t.median_ms, 4))),
        ("p90 ms", of(lambda t: fixed(t.p90_ms, 4))),
        ("p99 ms", of(lambda t: fixed(t.p99_ms, 4))),
        ("ratio", of(lambda t: fixed(t.ratio, 3))),
        ("interval", of(lambda t: interval(t.ratio_interval, 3))),
        ("verdict", of(lambda t: t.change.value if t.change else MISSING)),
    ]
    return _table(f"On the GPU, engines interleaved: {boundary}", _labels(bench, timed, callers=False), timed, columns)


def _end_to_end(bench: Bench, lines: Sequence[BenchLine]) -> Iterator[BenchTable]:
    timed = [line for line in lines if line.end_to_end is not None]

    def of(value: Callable[[Latency, Latency], str]) -> _CELLS:
        return lambda t: MISSING if t.end_to_end is None or t.reading is None else value(t.end_to_end, t.reading)

    columns: list[tuple[str, _CELLS]] = [
        ("median ms", of(lambda t, _: fixed(t.median_ms, 3))),
        ("reading ms", of(lambda _, r: fixed(r.median_ms, 3))),
        ("reading %", of(lambda t, r: fixed(100.0 * r.median_ms / t.median_ms, 1))),
        ("p90 ms", of(lambda t, _: fixed(t.p90_ms, 3))),
        ("p99 ms", of(lambda t, _: fixed(t.p99_ms, 3))),
        ("ratio", of(lambda t, _: fixed(t.ratio, 3))),
        ("interval", of(lambda t, _: interval(t.ratio_interval, 3))),
        ("verdict", of(lambda t, _: t.change.value if t.change else MISSING)),
        ("per s", of(lambda t, _: fixed(t.throughput_per_s, 1))),
    ]
    yield _table("Latency end to end, from files to outputs", _labels(bench, timed, callers=False), timed, columns)


def _mode(figures: QueryFigures) -> str:
    if figures.compute is None:
        return "host"
    graph = {True: "graph, ", False: "plain, ", None: ""}[figures.graph]
    copies = "with copies" if figures.transfers else "no copies"
    return f"{graph}{copies}{', spin' if figures.spin else ''}"


def _queries(bench: Bench, lines: Sequence[BenchLine]) -> Iterator[BenchTable]:
    queried = [line for line in lines if line.figures is not None]

    def of(value: Callable[[QueryFigures], str]) -> _CELLS:
        return lambda line: MISSING if line.figures is None else value(line.figures)

    def spread(metric: Callable[[QueryFigures], Spread | None], value: Callable[[Spread], float]) -> _CELLS:
        def text(figures: QueryFigures) -> str:
            found = metric(figures)
            return MISSING if found is None else fixed(value(found), 3)

        return of(text)

    columns: list[tuple[str, _CELLS]] = [
        ("mode", of(_mode)),
        ("median ms", spread(lambda f: f.latency, lambda s: s.median_ms)),
        ("mean ms", spread(lambda f: f.latency, lambda s: s.mean_ms)),
        ("min ms", spread(lambda f: f.latency, lambda s: s.min_ms)),
        ("max ms", spread(lambda f: f.latency, lambda s: s.max_ms)),
        ("p90 ms", spread(lambda f: f.latency, lambda s: s.p90_ms)),
        ("p95 ms", spread(lambda f: f.latency, lambda s: s.p95_ms)),
        ("p99 ms", spread(lambda f: f.latency, lambda s: s.p99_ms)),
        ("to GPU ms", spread(lambda f: f.h2d if f.transfers else None, lambda s: s.median_ms)),
        ("compute ms", spread(lambda f: f.compute, lambda s: s.median_ms)),
        ("back ms", spread(lambda f: f.d2h if f.transfers else None, lambda s: s.median_ms)),
        ("enqueue ms", spread(lambda f: f.enqueue, lambda s: s.median_ms)),
        ("to ref", lambda line: fixed(_relative(bench, line), 3)),
        ("queries", of(lambda f: f"{f.queries:,}")),
        ("qps", of(lambda f: fixed(f.throughput_qps, 1))),
        ("samples/s", of(lambda f: fixed(f.samples_per_s, 1))),
    ]
    yield _table("Queries, as trtexec counts them", _labels(bench, queried, callers=True), queried, columns)


def _relative(bench: Bench, line: BenchLine) -> float | None:
    if line.figures is None:
        return None
    setting = None if line.engine is None else (line.threads or 0, line.batch_size or 0, line.streams or 0)
    return bench.relative(line.figures, setting)


def _energy(bench: Bench, lines: Sequence[BenchLine]) -> Iterator[BenchTable]:
    measured = [line for line in lines if line.energy is not None]
    columns: list[tuple[str, _CELLS]] = [
        ("mJ/sample", lambda t: significant(t.energy.millijoules_per_sample, 4) if t.energy else MISSING),
        ("mean W", lambda t: fixed(t.energy.mean_w, 1) if t.energy else MISSING),
        ("joules", lambda t: fixed(t.energy.joules, 1) if t.energy else MISSING),
        ("seconds", lambda t: fixed(t.energy.seconds, 1) if t.energy else MISSING),
        ("method", lambda t: plain(t.energy.method) if t.energy else MISSING),
    ]
    yield _table("Energy of the GPU, idling included", _labels(bench, measured, callers=True), measured, columns)


def _openings(bench: Bench) -> Iterator[BenchTable]:
    several = len(bench.settings.threads) > 1
    rows = bench.openings
    names = tuple(row.engine + (f" t{row.threads}" if several else "") for row in rows)
    engines = [bench.engine(row.engine) for row in rows]
    columns = (
        GridColumn("execution", tuple(MISSING if e is None else e.execution.value for e in engines), True),
        GridColumn("open ms", tuple(fixed(row.load_ms, 1) for row in rows)),
        GridColumn("first run ms", tuple(fixed(row.first_run_ms, 1) for row in rows)),
        GridColumn("size MiB", tuple(MISSING if e is None else mebibytes(e.size_bytes) for e in engines)),
    )
    yield BenchTable("Opening", "engine", names, columns)


def _rebuilds(found: Sequence[Rebuilds]) -> Iterator[BenchTable]:
    columns = (
        GridColumn("builds", tuple(str(len(row.builds)) for row in found)),
        GridColumn("distinct files", tuple(str(row.different_files) for row in found)),
        GridColumn("ratio", tuple(fixed(row.ratio, 3) for row in found)),
        GridColumn("interval", tuple(interval(row.interval, 3) for row in found)),
        GridColumn("between %", tuple(fixed(row.between_percent, 2) for row in found)),
        GridColumn("within %", tuple(fixed(row.within_percent, 2) for row in found)),
        GridColumn("fastest ms", tuple(fixed(min(b.median_ms for b in row.builds), 3) for row in found)),
        GridColumn("slowest ms", tuple(fixed(max(b.median_ms for b in row.builds), 3) for row in found)),
        GridColumn("build s", tuple(fixed(sum(b.build_s for b in row.builds) / len(row.builds), 1) for row in found)),
    )
    yield BenchTable("Builds of one variant against each other", "engine", tuple(row.engine for row in found), columns)


def _changes(bench: Bench) -> Iterator[BenchTable]:
    rows = bench.change.rows if bench.change is not None else ()
    several = len(bench.settings.threads) > 1 or len(bench.settings.batches) > 1

    def label(row: ChangeRow) -> str:
        return row.engine + (f" t{row.threads} b{row.batch_size}" if several else "")

    columns = (
        GridColumn("then ms", tuple(fixed(row.before_ms, 3) for row in rows)),
        GridColumn("now ms", tuple(fixed(row.after_ms, 3) for row in rows)),
        GridColumn("ms change %", tuple(fixed(row.change_percent, 1, sign=True) for row in rows)),
        GridColumn("ratio then", tuple(fixed(row.ratio_before, 3) for row in rows)),
        GridColumn("ratio now", tuple(fixed(row.ratio_after, 3) for row in rows)),
        GridColumn("ratio change %", tuple(fixed(row.ratio_change_percent, 1, sign=True) for row in rows)),
        GridColumn("intervals", tuple({True: "apart", False: "overlap", None: MISSING}[r.apart] for r in rows), True),
        GridColumn("file", tuple("same" if row.same_engine else "other" for row in rows), True),
    )
    yield BenchTable("Against the saved bench", "engine", tuple(map(label, rows)), columns)


def _profiles(bench: Bench) -> Iterator[BenchTable]:
    for profile in bench.imported_profiles:
        top = sorted(profile.rows, key=lambda row: -row.total_ms)[:_LAYERS]
        columns = (
            GridColumn("average ms", tuple(significant(row.average_ms) for row in top)),
            GridColumn("median ms", tuple(significant(row.median_ms) for row in top)),
            GridColumn("%", tuple(fixed(row.percent, 1) for row in top)),
        )
        title = f"Layers of {plain(profile.name)}: the {len(top)} of {len(profile.rows)} that take longest"
        yield BenchTable(title, "layer", tuple(row.name for row in top), columns)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
