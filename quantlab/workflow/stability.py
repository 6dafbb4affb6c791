"""Stability of a calibration: the data counted in groups, so that ranges of parts can be compared with the whole's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from quantlab.calibrators.stability import N_GROUPS, Group, Packed, measure_stability, total
from quantlab.calibrators.stability_result import Stability
from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets import Dataset
from quantlab.degradation import Degradation
from quantlab.engines.observation import Observation, observe
from quantlab.errors import ConfigError, DataError
from quantlab.files import write_text
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import ExistingPolicy, quantize_model
from quantlab.graph.targets import TargetProfile
from quantlab.progress import Narrator
from quantlab.reports import Style, render

T = TypeVar("T")


@runtime_checkable
class Divisible(Protocol):
    """A data set that can give some of its samples alone."""

    def part(self, ids: Collection[str]) -> Dataset:
        """The samples of these ids, in the same order."""
        ...


class GroupedObservation:
    """Observes a data set in ``N_GROUPS`` disjoint groups of images, one after the other.

    Samples are spread over the groups by the hash of their content and the seed, so that neither order nor names
    matter, and classes in folders do not end up in groups of their own. Where the model's batch is fixed, whole
    batches are spread, so that each has the samples that it has without groups.

    Attributes:
        seed: Of the groups and of the subsets.
        groups: What was counted, after `observe`.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.groups: tuple[Group, ...] = ()

    def observe(
        self,
        prepared: Prepared,
        dataset: Dataset,
        tensors: Sequence[str],
        threads: int,
        narrator: Narrator,
        *,
        channelwise: Collection[str] = (),
    ) -> Observation:
        """What `quantlab.engines.observation.observe` gives, to the last count.

        Raises:
            ConfigError: If the data set comes from a factory and cannot give some samples alone.
            DataError: If there are fewer samples than groups; as the data set does.
            CalibrationError: As `quantlab.engines.observation.observe` does.
        """
        if not isinstance(dataset, Divisible):
            raise ConfigError(
                f"{dataset.name} is a complete data set that cannot give some of its samples alone",
                expected="a data set with the method part(ids)",
                hint="return a sequence of samples from the factory, or leave out --stability",
            )
        plan = self._plan(dataset, prepared.fixed_batch or 1)
        steps = iter(narrator.track(range(len(dataset)), len(dataset), "calibrating"))
        groups: list[Group] = []
        result = Observation()
        for ids in plan:
            part = dataset.part(ids)
            counted = observe(
                prepared, part, tensors, threads, _Within(narrator, steps),
                channelwise=channelwise, expected_samples=len(dataset),
            )  # fmt: skip
            groups.append(Group(len(ids), {name: Packed.of(counted.pop(name)) for name in list(counted)}))
            result.note(counted)
        for _ in steps:  # samples that cannot be read are in no group; the bar ends all the same
            pass
        self.groups = tuple(groups)
        for name in groups[0].tensors:
            result[name] = total([group.tensors[name].unpack() for group in groups])
        return result

    def _plan(self, dataset: Dataset, batch: int) -> list[frozenset[str]]:
        entries = dataset.manifest.entries
        units = [entries[start : start + batch] for start in range(0, len(entries), batch)]
        if len(units) < N_GROUPS:
            batches = f" in {len(units)} batches of the model's {batch}" if batch > 1 else ""
            raise DataError(
                f"{dataset.name} has too few samples to tell how stable the ranges are",
                got=f"{len(entries)} samples{batches}",
                expected=f"at least {N_GROUPS * batch}",
                hint="give more images, or leave out --stability",
            )
        keys = [_key(self.seed, [entry.sha256 for entry in unit]) for unit in units]
        order = sorted(range(len(units)), key=lambda number: keys[number])
        return [
            frozenset(entry.id for number in order[group::N_GROUPS] for entry in units[number])
            for group in range(N_GROUPS)
        ]

    def measure(
        self, prepared: Prepared, table: CalibrationTable, target: TargetProfile, threads: int, narrator: Narrator
    ) -> Stability:
        """Stability of the ranges that the target uses, by the table's method.

        Raises:
            CalibrationError: If the table is not that of the groups.
            EngineBuildError: If no layer can be quantized.
        """
        used = quantize_model(prepared.model, table, target, existing=ExistingPolicy.COMPLETE).tensors
        narrator.say(f"stability: {len(used)} ranges from subsets of {len(self.groups)} groups of images")
        with ThreadPoolExecutor(threads) as pool:
            return measure_stability(self.groups, table, target.activation, self.seed, used, pool.map)


def _key(seed: int, samples: Sequence[str]) -> str:
    return sha256(f"{seed}:{','.join(samples)}".encode()).hexdigest()


class _Within:
    """Passes the progress of one group on to that of the whole."""

    def __init__(self, narrator: Narrator, steps: Iterator[int]) -> None:
        self.narrator = narrator
        self.steps = steps

    def say(self, text: str) -> None:
        self.narrator.say(text)

    def warn(self, degradation: Degradation) -> None:
        self.narrator.warn(degradation)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        for item in items:
            next(self.steps, None)
            yield item


def add_stability(
    grouped: GroupedObservation,
    folder: Path,
    prepared: Prepared,
    table: CalibrationTable,
    target: TargetProfile,
    threads: int,
    narrator: Narrator,
    style: Style,
) -> tuple[str, dict[str, Any]]:
    """Measure and write the stability of a calibration that was just observed in groups.

    Returns:
        What ``calibrate --stability`` prints more, and what its JSON document holds more.

    Raises:
        OutputError: If ``stability.json`` cannot be written.
        CalibrationError: As `GroupedObservation.measure`.
    """
    found = grouped.measure(prepared, table, target, threads, narrator)
    path = write_stability(folder, found)
    text = f"\n{render(found, 'terminal', style)}\nwrote {path}"
    return text, {
        "stability": {"enough_images": found.enough_images, "conclusion": found.conclusion, "file": str(path)}
    }


def write_stability(folder: Path, stability: Stability) -> Path:
    """Write ``stability.json``.

    Raises:
        OutputError: If it cannot be written.
    """
    path = folder / "stability.json"
    write_text(path, stability.to_json())
    return path
