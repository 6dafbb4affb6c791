"""Per-layer times of engines of one model, side by side: ``profile.json``."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlab.documents import dump_json, read_json
from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.engines.protocol import Arrays, Engine, LayerTimed
from quantlab.errors import ConfigError, DataError, MeasurementError, QuantlabError
from quantlab.harness.alignment import LayerRow, align
from quantlab.harness.footprint import Footprint
from quantlab.precision import Execution, Precision
from quantlab.progress import Narrator, Silent
from quantlab.records import from_plain, to_plain

PROFILE_SCHEMA = "quantlab.profile/1"

LEAST_SHARE = 0.01
"""A row, or a difference, matters if it is at least this share of the time of all the reference's layers."""

_WARMUP = 2


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """The layers of one engine.

    Attributes:
        name: Variant name.
        backend: Backend that ran it.
        requested: Precision asked for.
        execution: Native or emulated.
        run_ms: Median time of a whole run without the profiler, copies to a GPU included.
        layers: What it executes in a run, in that order.
    """

    name: str
    backend: str
    requested: Precision
    execution: Execution
    run_ms: float
    layers: tuple[LayerTime, ...]

    @property
    def total_ms(self) -> float:
        """Time of all layers under the profiler: no latency, for the profiler's cost is in each of them."""
        return math.fsum(layer.ms for layer in self.layers)

    def count(self, kind: LayerKind) -> int:
        """How many layers are of a kind."""
        return sum(layer.kind is kind for layer in self.layers)

    def share(self, kind: LayerKind) -> float:
        """Share of the layers' time that those of a kind take."""
        total = self.total_ms
        return math.fsum(layer.ms for layer in self.layers if layer.kind is kind) / total if total > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Profiles:
    """Per-layer times of engines, aligned.

    Attributes:
        reference: Name of the engine that the others are compared with; it is among ``engines``.
        engines: One each, in the order they were given.
        rows: Layers side by side, cells in the order of ``engines``.
        runs: Runs in a round; a layer's time there is their median.
        rounds: Rounds; a layer's time is the median of theirs.
        batch_size: Samples in a run.
        noise_ratio: How far two profiles of the reference lie apart, taken like those of two engines; see
            `noise_ratio`.
        left_out: Engines without per-layer times, with the reason.
        footprints: Memory and load time, where they were measured.
    """

    reference: str
    engines: tuple[EngineProfile, ...]
    rows: tuple[LayerRow, ...]
    runs: int
    rounds: int
    batch_size: int
    noise_ratio: float
    left_out: Mapping[str, str]
    footprints: tuple[Footprint, ...] = ()

    @property
    def baseline(self) -> int:
        """Position of the reference."""
        return next(i for i, engine in enumerate(self.engines) if engine.name == self.reference)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Positions of the other engines."""
        return tuple(i for i, engine in enumerate(self.engines) if engine.name != self.reference)

    def footprint(self, name: str) -> Footprint | None:
        """Of an engine; None if it was not measured."""
        return next((found for found in self.footprints if found.name == name), None)

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": PROFILE_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Profiles:
        """Read ``profile.json``.

        Raises:
            DataError: If the file is missing, damaged, or of another schema.
        """
        document = read_json(path, PROFILE_SCHEMA, DataError, "profile")
        document.pop("schema")
        profiles = from_plain(cls, document, str(path), DataError)
        names = [engine.name for engine in profiles.engines]
        ragged = any(len(row.cells) != len(names) for row in profiles.rows)
        if ragged or len(set(names)) != len(names) or profiles.reference not in names:
            raise DataError(
                f"profile {path} is damaged",
                got=f"engines {', '.join(names) or 'none'}, reference {profiles.reference}",
                expected="engines of different names, the reference among them, and a cell of each in every row",
                hint="run quantlab bench --profile again",
            )
        return profiles


def profile_engines(
    engines: Sequence[Engine],
    inputs: Arrays,
    runs: int = 10,
    *,
    rounds: int = 3,
    reference: str | None = None,
    narrator: Narrator | None = None,
) -> Profiles:
    """Time the layers of engines on one batch in rounds, and align them.

    Each round profiles every engine, and the reference a second time as the control; the order is turned round in
    every second one. Engines are run plainly before each profile, so that the profiler's cost can be told. An engine
    whose runtime does not time layers, or fails to, is left out with the reason; the others' times are kept. Memory:
    the layers of all engines and rounds, and while an engine is profiled what its runtime records.

    Args:
        engines: Engines of one model, whose nodes have the same names in all of them.
        inputs: One batch by input name.
        runs: Runs in a round; a layer's time there is their median.
        rounds: Rounds; a layer's time is the median of theirs.
        reference: Name of the engine to compare with; the first that times layers if not given.
        narrator: Told which round it is.

    Raises:
        ConfigError: If ``runs`` or ``rounds`` is not positive, or the reference is none of the engines.
        MeasurementError: If no engine, or not the reference, can be profiled.
        QuantlabError: As the reference raises it.
    """
    if min(runs, rounds) < 1:
        raise ConfigError("a profile needs at least one run and one round", got=f"{runs} runs, {rounds} rounds")
    chosen = _reference(engines, reference)
    slots = [*engines, chosen]  # the last one is the control
    taken: dict[int, list[tuple[LayerTime, ...]]] = {number: [] for number in range(len(slots))}
    run_ms: dict[int, list[float]] = {number: [] for number in range(len(slots))}
    left_out: dict[str, str] = {}
    for turn in (narrator or Silent()).track(range(rounds), rounds, "profiling layers"):
        for number in sorted(taken, reverse=turn % 2 == 1):
            engine = slots[number]
            try:
                run_ms[number].append(_run_ms(engine, inputs, runs))
                taken[number].append(_layers(engine, inputs, runs))
            except QuantlabError as error:
                if engine is chosen:
                    raise
                del taken[number]
                left_out[engine.sidecar.name] = f"{error.what}: {error.got}" if error.got else error.what
    control = typical_layers(taken.pop(len(engines)))
    found = [
        _profile(slots[number], statistics.median(run_ms[number]), typical_layers(times))
        for number, times in taken.items()
    ]
    layers = [one.layers for one in found]
    baseline = next(i for i, number in enumerate(taken) if slots[number] is chosen)
    batch_size = len(next(iter(inputs.values()))) if inputs else 0
    noise = noise_ratio(layers[baseline], control)
    name = chosen.sidecar.name
    return Profiles(name, tuple(found), align(layers, baseline), runs, rounds, batch_size, noise, left_out)


def typical_layers(rounds: Sequence[Sequence[LayerTime]]) -> tuple[LayerTime, ...]:
    """One list of layers from those of several rounds: the median of each; a round without a layer counts as no time.

    Layers are the same if they have name and operator in common and come as the same one of these.
    """
    times: dict[tuple[str, str, int], list[float]] = {}
    first: dict[tuple[str, str, int], LayerTime] = {}
    for number, layers in enumerate(rounds):
        seen: Counter[tuple[str, str]] = Counter()
        for layer in layers:
            kind = (layer.name, layer.operator)
            key = (*kind, seen[kind])
            seen[kind] += 1
            times.setdefault(key, [0.0] * len(rounds))[number] = layer.ms
            first.setdefault(key, layer)
    return tuple(dataclasses.replace(first[key], ms=statistics.median(found)) for key, found in times.items())


def noise_ratio(reference: Sequence[LayerTime], control: Sequence[LayerTime]) -> float:
    """How far two profiles of one engine lie apart: the ratio, or its inverse, that 95 % of the rows do not exceed.

    Only rows of at least `LEAST_SHARE` of the time count; 1 if there are none.
    """
    ratios = []
    for row in align([reference, control]):
        base, cell = row.cells
        if base is not None and cell is not None and cell.ratio and base.share >= LEAST_SHARE:
            ratios.append(max(cell.ratio, 1.0 / cell.ratio))
    ratios.sort()
    return ratios[max(math.ceil(0.95 * len(ratios)) - 1, 0)] if ratios else 1.0


def _reference(engines: Sequence[Engine], name: str | None) -> Engine:
    """The engine to compare with.

    Raises:
        ConfigError: If there is none of that name.
        MeasurementError: If it does not time its layers, or none does.
    """
    if name is not None:
        for engine in engines:
            if engine.sidecar.name == name:
                return engine
        got = [engine.sidecar.name for engine in engines]
        raise ConfigError(f"no engine is named {name!r}", got=", ".join(got) or "none")
    for engine in engines:
        if isinstance(engine, LayerTimed):
            return engine
    raise MeasurementError(
        "none of the engines can be profiled",
        got=", ".join(f"{engine.sidecar.name} of {engine.sidecar.backend}" for engine in engines) or "no engines",
        expected="a backend that times layers: onnxruntime, openvino, tensorrt or tensorrt-rtx",
    )


def _layers(engine: Engine, inputs: Arrays, runs: int) -> tuple[LayerTime, ...]:
    backend = engine.sidecar.backend
    if not isinstance(engine, LayerTimed):
        raise MeasurementError(f"the backend {backend} does not time layers")
    layers = tuple(_checked(layer, engine.sidecar.name) for layer in engine.layer_times(inputs, runs))
    if not layers:
        raise MeasurementError(f"the profiler of {backend} recorded no layers of {engine.sidecar.name}")
    return layers


def _profile(engine: Engine, run_ms: float, layers: tuple[LayerTime, ...]) -> EngineProfile:
    made = engine.sidecar
    return EngineProfile(made.name, made.backend, made.requested, made.execution, run_ms, layers)


def _run_ms(engine: Engine, inputs: Arrays, runs: int) -> float:
    times = []
    for _ in range(runs + _WARMUP):
        started = time.perf_counter_ns()
        engine.run(inputs)
        times.append((time.perf_counter_ns() - started) / 1e6)
    return statistics.median(times[_WARMUP:])


def _checked(layer: LayerTime, engine: str) -> LayerTime:
    """A layer whose time is one, and whose names can be written as UTF-8."""
    if not math.isfinite(layer.ms) or layer.ms < 0.0:
        raise MeasurementError(
            f"the profiler gave layer {layer.name!r} of {engine} a time that is none", got=layer.ms,
            expected="milliseconds, 0 or more",
        )  # fmt: skip
    return dataclasses.replace(
        layer,
        name=_text(layer.name),
        sources=tuple(dict.fromkeys(map(_text, layer.sources))),
        operator=_text(layer.operator),
        precision=_text(layer.precision),
    )


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
