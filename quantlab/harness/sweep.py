"""Measuring one setting of a bench: engines against each other, then each for itself as trtexec does."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Barrier
from types import ModuleType
from typing import Any

from quantlab.engines.protocol import Arrays, BlockTimed, DeviceTimed, Engine
from quantlab.engines.tensorrt.timing import DeviceTimes
from quantlab.errors import MeasurementError
from quantlab.harness.bench import BenchSettings, QueryRow
from quantlab.harness.caution import Caution, CautionCode
from quantlab.harness.device_timing import EngineDiedError, GpuTimings, time_on_gpu
from quantlab.harness.energy import Energy, EnergyMeter
from quantlab.harness.gpu import Gpu
from quantlab.harness.gpus import nvidia_gpus
from quantlab.harness.latency import LatencySettings, Timings, time_engines
from quantlab.harness.nvml import nvml_session, running_handle
from quantlab.harness.queries import (
    HostLoop,
    QueryTimes,
    gpu_figures,
    host_figures,
    merged,
    time_host,
    traced_times,
)
from quantlab.harness.surroundings import clock_cautions
from quantlab.harness.survivors import named_call
from quantlab.progress import Narrator

_SETTLE_S = 0.3
"""Runs before the first reading of a GPU's clocks, which are low while it idles."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the sweep.

    Attributes:
        threads: Of each engine on the CPU.
        batch_size: Samples a call.
        streams: Callers at once.
    """

    threads: int
    batch_size: int
    streams: int


@dataclass(frozen=True, slots=True)
class Queried:
    """What querying the engines of one setting gave.

    Attributes:
        rows: A row an engine.
        times: The queries themselves, by engine.
        cautions: What was seen.
    """

    rows: tuple[QueryRow, ...]
    times: Mapping[str, QueryTimes]
    cautions: tuple[Caution, ...]


def time_against_each_other(
    engines: Mapping[str, Engine], reference: str, inputs: Arrays, batch_size: int, settings: LatencySettings
) -> Timings:
    """Interleaved rounds of all engines, by label, and the reference against itself.

    Raises:
        EngineDiedError: If an engine fails.
    """
    calls = {name: named_call(engine, inputs) for name, engine in engines.items()}
    return time_engines(calls, reference, batch_size, settings)


def time_gpu_engines(
    engines: Sequence[Engine],
    inputs: Arrays,
    threads: int,
    batch_size: int,
    settings: BenchSettings,
    latency: LatencySettings,
    narrator: Narrator,
) -> tuple[GpuTimings | None, tuple[Caution, ...]]:
    """Interleaved rounds by CUDA events of the engines that can time themselves so; the first engine is the reference.

    If one of them cannot be captured as a CUDA graph, none is.

    Returns:
        None if there is no such engine, or the reference is none of them; and what was seen.

    Raises:
        MeasurementError: If an engine fails.
    """
    timed = {engine.sidecar.name: engine for engine in engines if isinstance(engine, BlockTimed)}
    reference = engines[0].sidecar.name
    if not timed:
        return None, ()
    if reference not in timed:
        text = f"{', '.join(timed)} have no ratios on the GPU, because the reference {reference} is not timed there"
        return None, (Caution(CautionCode.NO_GPU_RATIO, text),)
    narrator.say(
        f"timing {len(timed)} engines against each other on the GPU for about {settings.seconds:g} s: "
        f"batch {batch_size}"
    )

    def timings(*, graph: bool) -> GpuTimings:
        found = time_on_gpu(
            timed, reference, inputs, batch_size, latency, use_graph=graph, transfers=settings.transfers,
            spin=settings.spin,
        )  # fmt: skip
        return GpuTimings(threads, batch_size, graph, settings.transfers, settings.spin, tuple(found.values()))

    try:
        return timings(graph=settings.graph), ()
    except EngineDiedError as error:
        if not settings.graph:
            raise
        narrator.say(f"       without CUDA graphs: {error.what}")
        caution = Caution(CautionCode.NO_GRAPH, f"no CUDA graphs were used: {error.what}")
    return timings(graph=False), (caution,)


def query_engines(
    engines: Sequence[Engine], inputs: Arrays, setting: Setting, settings: BenchSettings, narrator: Narrator
) -> Queried:
    """Query engines one after the other: by CUDA events where an engine can, else on the host's clock.

    If one of the engines on a GPU cannot be captured as a CUDA graph, none is.

    Raises:
        MeasurementError: If an engine fails.
    """
    on_gpu = [engine for engine in engines if isinstance(engine, DeviceTimed)]
    graph = settings.graph
    rows: list[QueryRow] = []
    times: dict[str, QueryTimes] = {}
    cautions: list[Caution] = []
    readings: dict[str, tuple[Sequence[Gpu], Sequence[Gpu]]] = {}
    narrator.say(
        f"querying {len(engines)} engines for {settings.query_seconds:.2g} s each: threads {setting.threads}, "
        f"batch {setting.batch_size}, callers {setting.streams}"
    )
    with nvml_session() as nvml:
        found: dict[str, tuple[DeviceTimes, Energy | None]] = {}
        if on_gpu:
            try:
                found = _on_gpu(on_gpu, inputs, setting, settings, graph, nvml, readings)
            except MeasurementError as error:
                if not graph:
                    raise
                narrator.say(f"       without CUDA graphs: {error.what}")
                found = _on_gpu(on_gpu, inputs, setting, settings, False, nvml, readings)
                cautions.append(Caution(CautionCode.NO_GRAPH, f"no CUDA graphs were used: {error.what}"))
    for engine in engines:
        name = engine.sidecar.name
        energy: Energy | None = None
        if name in found:
            device, energy = found[name]
            figures, times[name] = gpu_figures(device), traced_times(device)
        else:
            loop = HostLoop(settings.query_seconds, streams=setting.streams)
            times[name], warmup = time_host(named_call(engine, inputs), loop)
            figures = host_figures(times[name], warmup, setting.batch_size, setting.streams)
        rows.append(QueryRow(name, setting.threads, setting.batch_size, setting.streams, figures, energy))
        cautions += figures.cautions(name)
    return Queried(tuple(rows), times, (*cautions, *clock_cautions(readings)))


def _on_gpu(
    engines: Sequence[DeviceTimed],
    inputs: Arrays,
    setting: Setting,
    settings: BenchSettings,
    graph: bool,
    nvml: ModuleType | None,
    readings: dict[str, tuple[Sequence[Gpu], Sequence[Gpu]]],
) -> dict[str, tuple[DeviceTimes, Energy | None]]:
    handle = running_handle(nvml) if nvml is not None else None
    found = {}
    for engine in engines:
        name = engine.sidecar.name
        _settle(engine, inputs)
        before = nvidia_gpus() if nvml is not None else ()
        times, energy = _one_on_gpu(engine, inputs, setting, settings, graph, EnergyMeter(nvml, handle))
        readings[name] = (before, nvidia_gpus() if nvml is not None else ())
        found[name] = (times, energy)
    return found


def _settle(engine: Any, inputs: Arrays) -> None:
    """Run until a library that compiles at run time has, and the GPU's clocks are up."""
    engine.run(inputs)
    end = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < end:
        engine.run(inputs)


def _one_on_gpu(
    engine: DeviceTimed,
    inputs: Arrays,
    setting: Setting,
    settings: BenchSettings,
    graph: bool,
    meter: EnergyMeter,
) -> tuple[DeviceTimes, Energy | None]:
    together = Barrier(setting.streams)

    def query(_: int) -> DeviceTimes:
        together.wait()
        return engine.time_device(
            inputs,
            seconds=settings.query_seconds,
            use_graph=graph,
            transfers=settings.transfers,
            spin=settings.spin,
        )

    meter.start()
    try:
        if setting.streams == 1:
            parts = [query(0)]
        else:
            with _no_collection(), ThreadPoolExecutor(setting.streams) as pool:
                parts = list(pool.map(query, range(setting.streams)))
    finally:
        spent = meter.stop()
    times = merged(parts)
    queries = len(times.compute_ms) + times.warmup_queries
    return times, None if spent is None else Energy(*spent, queries=queries, batch_size=times.batch_size)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: each thread's own switching it on again would disturb the others."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
