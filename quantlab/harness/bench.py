"""The result of measuring latency alone: plain records, saved as ``bench.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantlab.degradation import Degradation
from quantlab.documents import dump_json, read_json
from quantlab.errors import DataError
from quantlab.harness.bench_change import BenchChange
from quantlab.harness.caution import Caution
from quantlab.harness.device_timing import GpuTimings
from quantlab.harness.end_to_end import EndToEnd
from quantlab.harness.energy import Energy
from quantlab.harness.queries import HOST_CLOCK, QueryFigures
from quantlab.harness.rebuilds import Rebuilds
from quantlab.harness.surroundings import Fingerprint, Surroundings
from quantlab.harness.timings import Timings
from quantlab.harness.trtexec_files import ImportedProfile, ImportedTimes
from quantlab.precision import Execution, Precision
from quantlab.records import from_plain, to_plain

BENCH_SCHEMA = "quantlab.bench/1"


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How to measure.

    Attributes:
        batches: Samples a call, each measured apart; empty for the engines' own (their fixed batch, or 1).
        threads: Threads of each engine on the CPU; engines are opened anew for each.
        streams: Callers at once (contexts on a GPU), each measured apart.
        seconds: Budget of the interleaved timing, for each batch size and number of threads; 0 for none.
        query_seconds: Least time of the queries of one engine, for each number of callers.
        processes: Fresh processes that repeat the interleaved timing; 1 for this process alone.
        rebuilds: Builds of each engine to time against each other; 0 for none.
        graph: Whether engines on a GPU are launched as CUDA graphs.
        transfers: Whether the copies to and from a GPU are made in every query.
        spin: Whether the host spins while it waits for a GPU.
        seed: Of inputs, order and bootstrap.
        end_to_end: Whether engines are timed from files to outputs too, for ``seconds`` in each setting.
    """

    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (1,)
    streams: tuple[int, ...] = (1,)
    seconds: float = 10.0
    query_seconds: float = 3.0
    processes: int = 1
    rebuilds: int = 0
    graph: bool = True
    transfers: bool = True
    spin: bool = False
    seed: int = 0
    end_to_end: bool = False


@dataclass(frozen=True, slots=True)
class BenchEngine:
    """What was measured.

    Attributes:
        name: Name of the variant.
        backend: Backend that ran it.
        requested: Precision asked for.
        proved: Precision found by inspection; None if nothing could be proved.
        execution: Native or emulated.
        size_bytes: Size of the engine file with its external data.
        sha256: Hash of the engine file.
        model: File name of the source model.
        model_sha256: Hash of the source model.
    """

    name: str
    backend: str
    requested: Precision
    proved: Precision | None
    execution: Execution
    size_bytes: int
    sha256: str
    model: str
    model_sha256: str


@dataclass(frozen=True, slots=True)
class Interleaved:
    """All engines timed against each other in one setting.

    Attributes:
        threads: Of each engine on the CPU.
        batch_size: Samples a call.
        timings: Latencies, ratios, the control, and the raw block medians.
    """

    threads: int
    batch_size: int
    timings: Timings


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One engine queried for some time in one setting, as trtexec does.

    Attributes:
        engine: Name.
        threads: Of the engine on the CPU.
        batch_size: Samples a query.
        streams: Callers at once.
        figures: The summary.
        energy: Of the GPU; None where it cannot be measured.
    """

    engine: str
    threads: int
    batch_size: int
    streams: int
    figures: QueryFigures
    energy: Energy | None


@dataclass(frozen=True, slots=True)
class Opening:
    """How long an engine took to open: reading, checking its hash, and making it ready to run.

    Attributes:
        engine: Name.
        threads: Of the engine on the CPU.
        load_ms: Time; the file is in memory already, for its hash was checked before.
        first_run_ms: The first run after it; where a library compiles at run time, that is part of it.
    """

    engine: str
    threads: int
    load_ms: float
    first_run_ms: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Latency of engines, with all that it depends on.

    Attributes:
        reference: Name of the engine that ratios are taken to; None if there are only files of trtexec.
        engines: The engines, reference first.
        data: What they were fed with, in words.
        data_sha256: Digest of the data; None for random numbers.
        settings: How it was measured; batches are those that were.
        openings: Time to open each engine.
        interleaved: Engines against each other, by threads and batch size.
        queries: Engine by engine, by threads, batch size and callers.
        rebuilds: How much builds of one variant differ.
        imported: Measurements that were read from files of trtexec.
        imported_profiles: Profiles that were read from files of trtexec.
        fingerprint: What must agree for another measurement to be compared.
        before: The machine before the engines were opened.
        after: The machine right after the last measurement.
        cautions: What may make the figures other than they look.
        degradations: Of preparation, calibration and build of the engines.
        change: Against a saved measurement; None if there was none.
        end_to_end: Engines against each other from files to outputs, by threads and batch size.
        on_gpu: Engines against each other by CUDA events, by threads and batch size; only if the reference is on a GPU.
    """

    reference: str | None
    engines: tuple[BenchEngine, ...]
    data: str
    data_sha256: str | None
    settings: BenchSettings
    openings: tuple[Opening, ...]
    interleaved: tuple[Interleaved, ...]
    queries: tuple[QueryRow, ...]
    rebuilds: tuple[Rebuilds, ...]
    imported: tuple[ImportedTimes, ...]
    imported_profiles: tuple[ImportedProfile, ...]
    fingerprint: Fingerprint
    before: Surroundings
    after: Surroundings
    cautions: tuple[Caution, ...]
    degradations: tuple[Degradation, ...]
    change: BenchChange | None = None
    end_to_end: tuple[EndToEnd, ...] = ()
    on_gpu: tuple[GpuTimings, ...] = ()

    def engine(self, name: str) -> BenchEngine | None:
        """The engine of that name, or None."""
        return next((engine for engine in self.engines if engine.name == name), None)

    def relative(self, figures: QueryFigures, setting: tuple[int, int, int] | None) -> float | None:
        """Median latency of queries to that of the reference's; not paired, so without an interval.

        Args:
            figures: The queries.
            setting: Threads, batch size and callers, in which the reference was queried too; None for queries from a
                file, which are compared with the first of the reference that are timed in the same way.

        Returns:
            None if the reference was not queried so, or was timed by another clock or with other copies.
        """
        for row in self.queries:
            if row.engine != self.reference or setting not in (None, (row.threads, row.batch_size, row.streams)):
                continue
            alike = (row.figures.clock == HOST_CLOCK) == (figures.clock == HOST_CLOCK)
            if alike and row.figures.transfers == figures.transfers and row.figures.latency.median_ms > 0.0:
                return figures.latency.median_ms / row.figures.latency.median_ms
        return None

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": BENCH_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Bench:
        """Read ``bench.json``.

        Raises:
            DataError: If the file is missing, damaged, or of another schema.
        """
        document = read_json(path, BENCH_SCHEMA, DataError, "bench")
        document.pop("schema")
        bench = from_plain(cls, document, str(path), DataError)
        names = [engine.name for engine in bench.engines]
        used = {row.engine for row in bench.queries} | {row.engine for row in bench.openings}
        used |= {name for point in bench.interleaved for name in point.timings.latencies}
        used |= {name for point in bench.on_gpu for timings in point.timings for name in timings.latencies}
        used |= {name for point in bench.end_to_end for name in (*point.timings.latencies, *point.reading.latencies)}
        if len(set(names)) != len(names) or not used <= set(names) or (bench.reference or "") not in {*names, ""}:
            raise DataError(
                f"bench {path} is damaged",
                got=f"engines {', '.join(names) or 'none'}, figures of {', '.join(sorted(used)) or 'none'}",
                expected="engines of different names, and figures of these alone",
                hint="run quantlab bench again",
            )
        return bench
