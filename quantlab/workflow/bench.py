"""Bench: the latency of engines, alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantlab.degradation import Degradation, merge_degradations
from quantlab.engines.protocol import Arrays, DeviceTimed, Engine
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.errors import ConfigError
from quantlab.files import check_folder, write_text
from quantlab.harness.bench import Bench, BenchEngine, BenchSettings, Interleaved, Opening, QueryRow
from quantlab.harness.bench_change import change_since, check_alike, difference_cautions
from quantlab.harness.caution import Caution, CautionCode
from quantlab.harness.device_timing import GpuTimings
from quantlab.harness.end_to_end import EndToEnd, Feed, time_end_to_end
from quantlab.harness.latency import LatencySettings, Timings
from quantlab.harness.profile import EngineProfile, Profiles, profile_engines
from quantlab.harness.queries import QueryTimes
from quantlab.harness.rebuilds import Rebuilds
from quantlab.harness.surroundings import fingerprint_of, read_surroundings, surroundings_cautions
from quantlab.harness.survivors import with_survivors
from quantlab.harness.sweep import Setting, query_engines, time_against_each_other, time_gpu_engines
from quantlab.harness.trtexec_files import (
    ImportedProfile,
    ImportedTimes,
    ProfileRow,
    profile_text,
    read_trtexec,
    times_text,
)
from quantlab.precision import Execution
from quantlab.progress import Narrator
from quantlab.reports import render
from quantlab.workflow.bench_engines import (
    BenchInputs,
    batch_sizes,
    check_together,
    data_inputs,
    first_runs,
    open_timed,
    random_inputs,
    split_paths,
)
from quantlab.workflow.bench_rebuilds import RebuildRequest, plan_rebuilds, time_rebuilds
from quantlab.workflow.compare import find_engines, reference_name
from quantlab.workflow.footprint import measure_footprints
from quantlab.workflow.sources import DataRequest

_MOST = 1024


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure.

    Attributes:
        engines: Engine files, folders of them, and files of trtexec.
        settings: How.
        reference: Engine that ratios are taken to; None for the only one, or the only one in FP32.
        data: Samples to time on; None for random numbers.
        shapes: Shapes of inputs with free axes, batch first, for random numbers.
        rebuild: Model and table to build engines from again.
        against: Saved measurement to compare with.
        allow_mismatch: Whether it may come from another environment.
        export: Folder for the queries in trtexec's form; None for none.
        profile: Whether layers are timed one by one, and memory and load time in fresh processes.
        plugins: Libraries with operators that engines of TensorRT use.
    """

    engines: tuple[Path, ...]
    settings: BenchSettings = field(default_factory=BenchSettings)
    reference: str | None = None
    data: DataRequest | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rebuild: RebuildRequest | None = None
    against: Path | None = None
    allow_mismatch: bool = False
    export: Path | None = None
    profile: bool = False
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a bench gave.

    Attributes:
        bench: Latencies.
        profiles: Layers of the engines, their memory and load time, in the first setting; None if not asked for.
    """

    bench: Bench
    profiles: Profiles | None


def parse_numbers(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers from 1 on of a comma-separated list, without repeats.

    Raises:
        ConfigError: If one is none.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) < 6 and 1 <= int(part) <= 65536):
            raise ConfigError(f"{flag} is malformed", got=repr(text[:60]), expected="1 to 65536, as in 1,8,32")
    return tuple(dict.fromkeys(map(int, parts)))


def check_settings(settings: BenchSettings) -> None:
    """Refuse settings that cannot be measured.

    Raises:
        ConfigError: Naming the flag.
    """
    for flag, values in (("--threads", settings.threads), ("--streams", settings.streams)):
        if max(values) > _MOST:
            raise ConfigError(f"{flag} is out of range", got=max(values), expected=f"at most {_MOST}")
    for flag, seconds in (("--seconds", settings.seconds), ("--query-seconds", settings.query_seconds)):
        if not 0.0 <= seconds <= 86400.0:
            raise ConfigError(f"{flag} is out of range", got=seconds, expected="seconds from 0 to 86400")
    if settings.seconds == 0.0 and settings.query_seconds == 0.0:
        raise ConfigError("nothing is left to measure", got="--seconds 0 --query-seconds 0")
    if settings.seconds == 0.0 and (settings.processes > 1 or settings.rebuilds):
        flag = "--processes" if settings.processes > 1 else "--rebuilds"
        raise ConfigError(f"{flag} repeats the interleaved timing, and there is none", got="--seconds 0")
    if settings.seconds == 0.0 and settings.end_to_end:
        raise ConfigError("--end-to-end takes its time from --seconds, and there is none", got="--seconds 0")
    if settings.rebuilds == 1:
        raise ConfigError("one build cannot be compared with others", got="--rebuilds 1", expected="2 or more")


def bench_files(request: BenchRequest, narrator: Narrator) -> BenchResult:
    """Measure engines, and read what trtexec measured.

    Raises:
        ConfigError: If a setting cannot be, or there is no reference.
        DataError: If data or a file of trtexec cannot be read.
        EngineMismatch: If engines do not belong together, or a saved measurement comes from another environment.
        MeasurementError: If an engine fails.
        BackendUnavailable: If a backend cannot be used here.
    """
    check_settings(request.settings)
    if request.settings.end_to_end and request.data is None:
        raise ConfigError("--end-to-end times reading and preprocessing, and there are no files", expected="--data too")
    named, files = split_paths(request.engines)
    imported = _read_files(files)
    old = Bench.load(request.against) if request.against is not None else None
    before = read_surroundings()
    fingerprint = fingerprint_of(before)
    where = str(request.against)
    differing = check_alike(fingerprint, old.fingerprint, where, allowed=request.allow_mismatch) if old else ()
    run = _Run(request, narrator)
    if named:
        run.measure(find_engines(named))
    elif not imported:
        raise ConfigError("no engines were named", expected="engine files, a folder of them, or files of trtexec")
    after = read_surroundings()
    around = surroundings_cautions(
        before, after, threads=run.settings.threads, callers=run.settings.streams, gpu=run.on_gpu
    ) if named else ()  # fmt: skip
    cautions = (*run.cautions, *around, *_of_files(imported), *difference_cautions(differing, where))
    bench = Bench(
        reference=run.reference,
        engines=run.identities,
        data=run.data,
        data_sha256=run.data_sha256,
        settings=run.settings,
        openings=tuple(run.openings),
        interleaved=tuple(run.interleaved),
        queries=tuple(run.queries),
        rebuilds=run.rebuilds,
        imported=tuple(one for one in imported if isinstance(one, ImportedTimes)),
        imported_profiles=tuple(one for one in imported if isinstance(one, ImportedProfile)),
        fingerprint=fingerprint,
        before=before,
        after=after,
        cautions=tuple(dict.fromkeys(cautions)),
        degradations=merge_degradations(
            (*run.failures, *(d for sidecar in run.sidecars for d in sidecar.degradations))
        ),
        end_to_end=tuple(run.end_to_end),
        on_gpu=tuple(run.gpu_timings),
    )
    if old is not None:
        bench = replace(bench, change=change_since(bench, old, differing))
    return BenchResult(bench, run.profiles)


def _read_files(paths: Sequence[Path]) -> list[ImportedTimes | ImportedProfile]:
    """Files of trtexec, named by their paths where file names alone do not tell them apart."""
    found = [read_trtexec(path) for path in dict.fromkeys(paths)]
    names = [one.name for one in found]
    return [
        one if names.count(one.name) == 1 else replace(one, name=str(path.with_suffix("")))
        for one, path in zip(found, dict.fromkeys(paths), strict=True)
    ]


def _of_files(imported: Sequence[ImportedTimes | ImportedProfile]) -> Iterator[Caution]:
    for one in imported:
        text = "read from a file that does not say on what, with which engine and settings it was measured"
        yield Caution(CautionCode.UNKNOWN_ENVIRONMENT, text, one.name)
        if isinstance(one, ImportedTimes):
            yield from one.figures.cautions(one.name)


class _Run:
    """The measurements of one bench, as they come."""

    def __init__(self, request: BenchRequest, narrator: Narrator) -> None:
        self._request = request
        self._narrator = narrator
        self.settings = request.settings
        self.reference: str | None = None
        self.sidecars: tuple[Sidecar, ...] = ()
        self.data = "nothing"
        self.data_sha256: str | None = None
        self.openings: list[Opening] = []
        self.interleaved: list[Interleaved] = []
        self.end_to_end: list[EndToEnd] = []
        self.gpu_timings: list[GpuTimings] = []
        self.queries: list[QueryRow] = []
        self.rebuilds: tuple[Rebuilds, ...] = ()
        self.cautions: list[Caution] = []
        self.failures: list[Degradation] = []
        self.on_gpu = False
        self.profiles: Profiles | None = None

    @property
    def _failed(self) -> set[str]:
        return {name for failure in self.failures for name in failure.subjects}

    @property
    def identities(self) -> tuple[BenchEngine, ...]:
        """What was measured."""
        return tuple(
            BenchEngine(
                name=sidecar.name,
                backend=sidecar.backend,
                requested=sidecar.requested,
                proved=sidecar.proved,
                execution=sidecar.execution,
                size_bytes=sidecar.size_bytes,
                sha256=sidecar.sha256,
                model=sidecar.model,
                model_sha256=sidecar.model_sha256,
            )
            for sidecar in self.sidecars
        )

    def measure(self, paths: Sequence[Path]) -> None:
        """Every setting in turn."""
        request, narrator = self._request, self._narrator
        by_path = {path: read_sidecar(path) for path in paths}
        check_together(list(by_path.values()))
        self.reference = _reference(list(by_path.values()), request.reference)
        ordered = sorted(by_path, key=lambda path: by_path[path].name != self.reference)
        self.sidecars = tuple(by_path[path] for path in ordered)
        sizes = batch_sizes(self.sidecars, self.settings.batches)
        self.settings = replace(self.settings, batches=sizes)
        plans = plan_rebuilds(self.sidecars, request.rebuild, narrator) if request.rebuild is not None else ()
        inputs = self._inputs(max(sizes))
        if self.settings.end_to_end and inputs.dataset is not None:
            Feed(inputs.dataset, 1, 1)  # refuses data that cannot be timed before anything is
        if request.export is not None:
            check_folder(request.export)
        for threads in self.settings.threads:
            contexts = max(self.settings.streams)
            with open_timed(ordered, threads, contexts, request.plugins, narrator) as (engines, spent):
                self.sidecars = tuple(engine.sidecar for engine in engines)  # a first run may have proved something
                self.on_gpu = self.on_gpu or any(isinstance(engine, DeviceTimed) for engine in engines)
                self.openings += first_runs(engines, spent, inputs.batch(sizes[0]), threads)
                for size in sizes:
                    self._measure_setting(engines, ordered, threads, size, inputs.batch(size))
                    if self.settings.end_to_end:
                        self._from_files(engines, threads, size, inputs)
                if request.profile and self.profiles is None:
                    self.profiles = self._profile(engines, ordered, threads, inputs.batch(sizes[0]))
        if request.rebuild is not None:
            self.rebuilds = time_rebuilds(
                plans, request.rebuild, ordered[0], inputs, sizes[0], self.settings.threads[0],
                self._latency_settings(), narrator,
            )  # fmt: skip
        for sidecar in self.sidecars:
            if sidecar.execution is Execution.EMULATED:
                text = f"it only emulates {sidecar.requested} here: its time is not that of the precision"
                self.cautions.append(Caution(CautionCode.EMULATED, text, sidecar.name))

    def _inputs(self, size: int) -> BenchInputs:
        request = self._request
        if request.data is None:
            inputs = random_inputs(self.sidecars[0], size, self.settings.seed, request.shapes)
            text = "timed on random numbers; where latency depends on the data, time it on data with --data"
            self.cautions.append(Caution(CautionCode.RANDOM_INPUTS, text))
        else:
            inputs = data_inputs(self.sidecars, request.data, size, self._narrator)
        self.data, self.data_sha256 = inputs.description, inputs.sha256
        self._narrator.say(f"timing on {inputs.description}")
        return inputs

    def _measure_setting(
        self, engines: Sequence[Engine], paths: Sequence[Path], threads: int, size: int, batch: Arrays
    ) -> None:
        engines = [engine for engine in engines if engine.sidecar.name not in self._failed]
        if self.settings.seconds > 0.0:
            timings, engines = with_survivors(
                engines, lambda left: self._interleave(left, paths, threads, size, batch), self.failures
            )
            self.interleaved.append(Interleaved(threads, size, timings))
            on_gpu, seen = time_gpu_engines(
                engines, batch, threads, size, self.settings, self._latency_settings(), self._narrator
            )
            self.gpu_timings += [on_gpu] if on_gpu is not None else []
            self.cautions += seen
        if self.settings.query_seconds == 0.0:
            return
        for streams in self.settings.streams:
            setting = Setting(threads, size, streams)
            queried, engines = with_survivors(
                engines,
                lambda left, setting=setting: query_engines(left, batch, setting, self.settings, self._narrator),  # type: ignore[misc]
                self.failures,
                "was not queried",
            )
            self.queries += queried.rows
            self.cautions += queried.cautions
            if self._request.export is not None:
                self._export(self._request.export, setting, queried.times)

    def _from_files(self, engines: Sequence[Engine], threads: int, size: int, inputs: BenchInputs) -> None:
        if inputs.dataset is None:
            raise AssertionError("--end-to-end without data was refused")
        self._narrator.say(
            f"timing {len(engines)} engines from files to outputs for about {self.settings.seconds:g} s: "
            f"threads {threads}, batch {size}"
        )
        by_name = {engine.sidecar.name: engine for engine in engines if engine.sidecar.name not in self._failed}
        reference = engines[0].sidecar.name
        settings = self._latency_settings()
        self.end_to_end.append(time_end_to_end(by_name, reference, inputs.dataset, size, threads, settings))

    def _interleave(
        self, engines: Sequence[Engine], paths: Sequence[Path], threads: int, size: int, batch: Arrays
    ) -> Timings:
        name = engines[0].sidecar.name
        processes = self.settings.processes
        where = f" in {processes} fresh processes" if processes > 1 else ""
        self._narrator.say(
            f"timing {len(engines)} engines against each other for about {self.settings.seconds:g} s{where}: "
            f"threads {threads}, batch {size}"
        )
        if processes == 1:
            by_name = {engine.sidecar.name: engine for engine in engines}
            return time_against_each_other(by_name, name, batch, size, self._latency_settings())
        from quantlab.workflow.timing_processes import time_in_processes

        return time_in_processes(
            paths, name, batch, size, self._latency_settings(), processes=processes, threads=threads,
            plugins=self._request.plugins, narrator=self._narrator,
        )  # fmt: skip

    def _profile(self, engines: Sequence[Engine], paths: Sequence[Path], threads: int, batch: Arrays) -> Profiles:
        profiles = profile_engines(engines, batch, reference=engines[0].sidecar.name, narrator=self._narrator)
        if self._request.export is not None:
            for engine in profiles.engines:
                text = profile_text(profiles.runs * profiles.rounds, _layer_rows(engine, profiles))
                write_text(self._request.export / f"{engine.name}.profile.json", text)
        return replace(profiles, footprints=measure_footprints(paths, batch, threads, narrator=self._narrator))

    def _latency_settings(self) -> LatencySettings:
        return LatencySettings(seconds=self.settings.seconds, seed=self.settings.seed)

    def _export(self, folder: Path, setting: Setting, times: Mapping[str, QueryTimes]) -> None:
        several = max(len(self.settings.threads), len(self.settings.batches), len(self.settings.streams)) > 1
        suffix = f"-t{setting.threads}-b{setting.batch_size}-s{setting.streams}" if several else ""
        for name, queries in times.items():
            write_text(folder / f"{name}{suffix}.times.json", times_text(queries))


def _layer_rows(engine: EngineProfile, profiles: Profiles) -> list[ProfileRow]:
    """Layers as trtexec states them; a layer's time here is a median, which stands for the mean too."""
    total = engine.total_ms
    runs = profiles.runs * profiles.rounds
    return [
        ProfileRow(layer.name, layer.ms * runs, layer.ms, layer.ms, 100.0 * layer.ms / total if total > 0 else 0.0)
        for layer in engine.layers
    ]


def _reference(sidecars: Sequence[Sidecar], wanted: str | None) -> str:
    if wanted is None and len(sidecars) == 1:
        return sidecars[0].name
    return reference_name(sidecars, wanted)


def write_bench(folder: Path, result: BenchResult) -> tuple[Path, ...]:
    """Write ``bench.csv``, ``.md`` and, last, ``.json``; the same of the profiles, if there are any.

    Raises:
        OutputError: If a file cannot be written.
    """
    written: list[Path] = []
    for name, found in (("profile", result.profiles), ("bench", result.bench)):
        if found is None:
            continue
        paths = [folder / f"{name}.{ending}" for ending in ("json", "csv", "md")]
        write_text(paths[1], render(found, "csv"))
        write_text(paths[2], render(found, "markdown"))
        write_text(paths[0], found.to_json())
        written = [*paths, *written]
    return tuple(written)
