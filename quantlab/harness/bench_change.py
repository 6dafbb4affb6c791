"""A measurement against a saved one: what changed, and whether the two may be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.errors import EngineMismatch
from quantlab.harness.caution import Caution, CautionCode
from quantlab.harness.surroundings import Difference, Fingerprint, differences

if TYPE_CHECKING:
    from quantlab.harness.bench import Bench
    from quantlab.harness.measurement import Latency


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One engine in one setting, then and now.

    What is between two runs of a program (where it lies in memory, how warm the machine is) is in no interval of one of
    them. So the change of the ratio to the reference says more than that of the time: the reference was there both
    times.

    Attributes:
        engine: Name.
        threads: Of the engine on the CPU.
        batch_size: Samples a call.
        before_ms: Median then.
        after_ms: Median now.
        change_percent: Of the median; negative is faster.
        ratio_before: To the reference, then.
        ratio_after: To the reference, now.
        ratio_change_percent: Of the ratio; None for the reference itself.
        apart: Whether the intervals of the two ratios have no value in common; None for the reference itself.
        same_engine: Whether the file is the same one.
    """

    engine: str
    threads: int
    batch_size: int
    before_ms: float
    after_ms: float
    change_percent: float
    ratio_before: float
    ratio_after: float
    ratio_change_percent: float | None
    apart: bool | None
    same_engine: bool


@dataclass(frozen=True, slots=True)
class BenchChange:
    """Against a saved measurement.

    Attributes:
        taken: When the saved one was taken.
        differences: Keys of the environment that differ; only where that was allowed.
        rows: Engines and settings that both have.
        remarks: What else is to be known: other inputs or another model, engines and settings that only one has.
    """

    taken: str
    differences: tuple[Difference, ...]
    rows: tuple[ChangeRow, ...]
    remarks: tuple[str, ...]


def check_alike(here: Fingerprint, there: Fingerprint, name: str, *, allowed: bool) -> tuple[Difference, ...]:
    """The keys in which two environments differ.

    Args:
        here: This one.
        there: That of the saved measurement.
        name: Of the saved measurement, for the message.
        allowed: Whether they may differ.

    Raises:
        EngineMismatch: If they differ and may not, with the keys and both values.
    """
    found = differences(here, there)
    if found and not allowed:
        raise EngineMismatch(
            f"{name} was measured in another environment",
            got="; ".join(map(str, found)),
            expected="the same values",
            hint="measure both here, or allow it with --allow-env-mismatch",
        )
    return found


def difference_cautions(found: tuple[Difference, ...], name: str) -> tuple[Caution, ...]:
    """One caution that names what differs, if anything does."""
    if not found:
        return ()
    text = "compared though the environments differ in " + "; ".join(map(str, found))
    return (Caution(CautionCode.ENVIRONMENT_DIFFERS, text, name),)


def change_since(now: Bench, old: Bench, found: tuple[Difference, ...]) -> BenchChange:
    """What changed from a saved measurement to this one, engine by engine in every setting that both have."""
    mine, other = _cells(now), _cells(old)
    rows = tuple(_row(key, now, old, other[key], mine[key]) for key in mine if key in other)
    return BenchChange(old.before.taken, found, rows, tuple(_remarks(now, old, mine, other)))


Key = tuple[str, int, int]
"""Engine, threads, batch size."""
_NAMED = 4


def _cells(bench: Bench) -> Mapping[Key, Latency]:
    def cells() -> Iterator[tuple[Key, Latency]]:
        for point in bench.interleaved:
            for name, latency in point.timings.latencies.items():
                yield (name, point.threads, point.batch_size), latency

    return dict(cells())


def _remarks(now: Bench, old: Bench, mine: Mapping[Key, Latency], other: Mapping[Key, Latency]) -> Iterator[str]:
    if now.data != old.data:
        yield f"timed on {old.data} then, on {now.data} now"
    models = [sorted({engine.model_sha256[:12] for engine in bench.engines}) for bench in (old, now)]
    if models[0] != models[1]:
        yield f"engines of model {', '.join(models[0])} then, of {', '.join(models[1])} now"
    if now.settings.processes != old.settings.processes:
        yield f"{old.settings.processes} processes then, {now.settings.processes} now"
    for when, keys in (
        ("now", [key for key in mine if key not in other]),
        ("then", [key for key in other if key not in mine]),
    ):
        some = ", ".join(f"{engine} t{threads} b{batch}" for engine, threads, batch in keys[:_NAMED])
        if keys:
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            yield f"measured only {when}: {some}{more}"


def _row(key: Key, now: Bench, old: Bench, before: Latency, after: Latency) -> ChangeRow:
    name, threads, batch_size = key
    reference = name == now.reference or name == old.reference
    then, here = before.ratio_interval, after.ratio_interval
    mine, other = now.engine(name), old.engine(name)
    return ChangeRow(
        engine=name,
        threads=threads,
        batch_size=batch_size,
        before_ms=before.median_ms,
        after_ms=after.median_ms,
        change_percent=100.0 * (after.median_ms / before.median_ms - 1.0),
        ratio_before=before.ratio,
        ratio_after=after.ratio,
        ratio_change_percent=None if reference else 100.0 * (after.ratio / before.ratio - 1.0),
        apart=None if reference else then.high < here.low or here.high < then.low,
        same_engine=mine is not None and other is not None and mine.sha256 == other.sha256,
    )
