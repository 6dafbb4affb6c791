"""A bench as a table for programs: one line for each engine and setting, every figure of trtexec's summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from quantlab.harness.bench import Bench, BenchEngine, Opening, QueryRow
from quantlab.harness.device_timing import EVENT_BOUNDARIES
from quantlab.harness.energy import Energy
from quantlab.harness.measurement import Boundary, Latency
from quantlab.harness.queries import QueryFigures
from quantlab.harness.trtexec import Spread

if TYPE_CHECKING:
    import pandas as pd

_TEXT, _WHOLE, _NUMBER, _TRUTH = "string[python]", "Int64", "Float64", "boolean"
_METRICS = ("latency", "h2d", "compute", "d2h", "enqueue")
_STATISTICS = tuple(field.name for field in fields(Spread))


@dataclass(frozen=True, slots=True)
class BenchLine:
    """One engine in one setting, or one file of trtexec.

    Attributes:
        name: Engine or file.
        engine: The engine; None for a file.
        threads: Of the engine; None for a file.
        batch_size: Samples a call; None for a file.
        streams: Callers at once; None where it was not queried.
        latency: From interleaved rounds, which have one caller.
        end_to_end: From files to outputs, with one caller.
        reading: The part of it before the run.
        on_gpu: By CUDA events, from interleaved rounds with one caller, by boundary.
        figures: Of the queries.
        opening: Time to open it.
        energy: Of the GPU over the queries.
    """

    name: str
    engine: BenchEngine | None
    threads: int | None
    batch_size: int | None
    streams: int | None
    latency: Latency | None
    figures: QueryFigures | None
    opening: Opening | None
    energy: Energy | None
    end_to_end: Latency | None = None
    reading: Latency | None = None
    on_gpu: Mapping[Boundary, Latency] = field(default_factory=dict)


def bench_lines(bench: Bench) -> Iterator[BenchLine]:
    """Every engine and setting in the order of measuring, then the files."""
    latencies = {
        (name, point.threads, point.batch_size): latency
        for point in bench.interleaved
        for name, latency in point.timings.latencies.items()
    }
    whole = {(name, at.threads, at.batch_size): at for at in bench.end_to_end for name in at.timings.latencies}
    on_gpu: dict[tuple[str, int, int], dict[Boundary, Latency]] = {}
    for point in bench.on_gpu:
        for timings in point.timings:
            for name, latency in timings.latencies.items():
                on_gpu.setdefault((name, point.threads, point.batch_size), {})[timings.boundary] = latency
    openings = {(opening.engine, opening.threads): opening for opening in bench.openings}
    queried: dict[tuple[str, int, int], list[QueryRow]] = {}
    for row in bench.queries:
        queried.setdefault((row.engine, row.threads, row.batch_size), []).append(row)
    for key in dict.fromkeys([*latencies, *whole, *on_gpu, *queried]):
        name, threads, batch_size = key
        files = whole.get(key)
        rows: Sequence[QueryRow | None] = queried.get(key) or [None]
        alone = next((found for found in rows if found is not None and found.streams == 1), rows[0])
        for found in rows:
            yield BenchLine(
                name=name,
                engine=bench.engine(name),
                threads=threads,
                batch_size=batch_size,
                streams=found.streams if found is not None else None,
                latency=latencies.get(key) if found is alone else None,
                figures=found.figures if found is not None else None,
                opening=openings.get((name, threads)),
                energy=found.energy if found is not None else None,
                end_to_end=files.timings.latencies[name] if files is not None and found is alone else None,
                reading=files.reading.latencies[name] if files is not None and found is alone else None,
                on_gpu=on_gpu.get(key, {}) if found is alone else {},
            )
    for one in bench.imported:
        yield BenchLine(one.name, None, None, one.figures.batch_size, None, None, one.figures, None, None)


def _spread_values(figures: QueryFigures | None) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for metric in _METRICS:
        found = getattr(figures, metric) if figures is not None else None
        for statistic in _STATISTICS:
            values[f"{metric}_{statistic}"] = getattr(found, statistic) if found is not None else None
    return values


def _gpu_values(line: BenchLine, boundary: Boundary) -> Iterator[tuple[str, tuple[str, object]]]:
    found = line.on_gpu.get(boundary)
    ends = found.ratio_interval if found is not None else None
    start = f"gpu_{boundary.name.lower()}"
    yield f"{start}_interleaved_median_ms", (_NUMBER, found.median_ms if found is not None else None)
    yield f"{start}_ratio", (_NUMBER, found.ratio if found is not None else None)
    yield f"{start}_ratio_low", (_NUMBER, ends.low if ends is not None else None)
    yield f"{start}_ratio_high", (_NUMBER, ends.high if ends is not None else None)
    yield f"{start}_verdict", (_TEXT, found.change.value if found is not None and found.change is not None else None)


def _row(line: BenchLine) -> dict[str, tuple[str, object]]:
    engine, latency, figures, opening, energy = line.engine, line.latency, line.figures, line.opening, line.energy
    interval = latency.ratio_interval if latency else None
    whole, reading = line.end_to_end, line.reading
    return {
        "engine": (_TEXT, line.name),
        "backend": (_TEXT, engine.backend if engine else None),
        "precision_requested": (_TEXT, engine.requested.value if engine else None),
        "precision_proved": (_TEXT, engine.proved.value if engine and engine.proved else None),
        "execution": (_TEXT, engine.execution.value if engine else None),
        "threads": (_WHOLE, line.threads),
        "batch_size": (_WHOLE, line.batch_size),
        "streams": (_WHOLE, line.streams),
        "interleaved_median_ms": (_NUMBER, latency.median_ms if latency else None),
        "interleaved_p90_ms": (_NUMBER, latency.p90_ms if latency else None),
        "interleaved_p99_ms": (_NUMBER, latency.p99_ms if latency else None),
        "ratio": (_NUMBER, latency.ratio if latency else None),
        "ratio_low": (_NUMBER, interval.low if interval else None),
        "ratio_high": (_NUMBER, interval.high if interval else None),
        "verdict": (_TEXT, latency.change.value if latency and latency.change else None),
        "end_to_end_median_ms": (_NUMBER, whole.median_ms if whole else None),
        "end_to_end_p90_ms": (_NUMBER, whole.p90_ms if whole else None),
        "end_to_end_p99_ms": (_NUMBER, whole.p99_ms if whole else None),
        "end_to_end_ratio": (_NUMBER, whole.ratio if whole else None),
        "end_to_end_ratio_low": (_NUMBER, whole.ratio_interval.low if whole else None),
        "end_to_end_ratio_high": (_NUMBER, whole.ratio_interval.high if whole else None),
        "end_to_end_verdict": (_TEXT, whole.change.value if whole and whole.change else None),
        "reading_median_ms": (_NUMBER, reading.median_ms if reading else None),
        **{name: value for boundary in EVENT_BOUNDARIES for name, value in _gpu_values(line, boundary)},
        "clock": (_TEXT, figures.clock if figures else None),
        "queries": (_WHOLE, figures.queries if figures else None),
        "walltime_s": (_NUMBER, figures.walltime_s if figures else None),
        "throughput_qps": (_NUMBER, figures.throughput_qps if figures else None),
        "samples_per_s": (_NUMBER, figures.samples_per_s if figures else None),
        **{name: (_NUMBER, value) for name, value in _spread_values(figures).items()},
        "total_compute_s": (_NUMBER, figures.total_compute_s if figures else None),
        "graph": (_TRUTH, figures.graph if figures else None),
        "transfers": (_TRUTH, figures.transfers if figures else None),
        "spin": (_TRUTH, figures.spin if figures else None),
        "load_ms": (_NUMBER, opening.load_ms if opening else None),
        "first_run_ms": (_NUMBER, opening.first_run_ms if opening else None),
        "energy_mj_per_sample": (_NUMBER, energy.millijoules_per_sample if energy else None),
        "mean_power_w": (_NUMBER, energy.mean_w if energy else None),
        "energy_method": (_TEXT, energy.method if energy else None),
        "size_bytes": (_WHOLE, engine.size_bytes if engine else None),
        "sha256": (_TEXT, engine.sha256 if engine else None),
    }


def bench_frame(bench: Bench) -> pd.DataFrame:
    """One row for each engine and setting, then one for each file of trtexec; units are in the names."""
    import pandas as pd

    rows = [_row(line) for line in bench_lines(bench)]
    dtypes: Mapping[str, str] = {name: dtype for name, (dtype, _) in (rows[0] if rows else _row(_NOTHING)).items()}
    return pd.DataFrame(
        {name: pd.array([row[name][1] for row in rows], dtype=dtype) for name, dtype in dtypes.items()}  # type: ignore[call-overload]
    )


_NOTHING = BenchLine("", None, None, None, None, None, None, None, None)
