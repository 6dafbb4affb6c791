"""What a profile shows, in sentences: the layers that got slower and faster, and what conversions cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantlab.engines.layer_time import LayerKind
from quantlab.harness.alignment import LayerCell, LayerRow
from quantlab.harness.profile import LEAST_SHARE, EngineProfile, Profiles
from quantlab.precision import Execution, Precision

LEAST_RATIO = 1.1
"""A row is called slower or faster from this ratio on, or its inverse; from the control's, if that is larger."""

_EIGHT_BITS = frozenset({Precision.INT8, Precision.INT8_FP16, Precision.FP8})
_FLOATS = frozenset({"fp32", "fp16", "bf16", "fp64"})


@dataclass(frozen=True, slots=True)
class Change:
    """A row that one engine runs slower or faster than the reference.

    Attributes:
        row: The row.
        engine: Name of the engine.
        difference_ms: Its time less the reference's.
        ratio: Of the two; None if the reference has no time there.
        words: The change in a sentence, with what the profile shows of its cause.
    """

    row: LayerRow
    engine: str
    difference_ms: float
    ratio: float | None
    words: str


def regressions(profiles: Profiles, engine: int, most: int = 5) -> tuple[Change, ...]:
    """The rows that an engine runs slower than the reference, those that cost most first.

    Args:
        profiles: Aligned layers.
        engine: Position of the engine.
        most: How many at most.
    """
    found = [change for change in _changes(profiles, engine) if change.difference_ms > 0.0]
    return tuple(sorted(found, key=lambda change: -change.difference_ms)[:most])


def gains(profiles: Profiles, engine: int, most: int = 5) -> tuple[Change, ...]:
    """The rows that an engine runs faster than the reference, those that save most first; see `regressions`."""
    found = [change for change in _changes(profiles, engine) if change.difference_ms < 0.0]
    return tuple(sorted(found, key=lambda change: change.difference_ms)[:most])


def notes(profiles: Profiles) -> tuple[str, ...]:
    """What to know of every engine's times, then of all: conversions, the profiler's cost, and what they are not."""
    return (*(_of_engine(engine) for engine in profiles.engines), _caveat(profiles), *_left_out(profiles))


def worst_first(profiles: Profiles) -> tuple[LayerRow, ...]:
    """The rows, those first that cost some engine most beyond the reference; without other engines, the slowest."""
    if not profiles.candidates:
        return tuple(sorted(profiles.rows, key=lambda row: -_ms(row.cells[profiles.baseline])))

    def cost(row: LayerRow) -> float:
        base = _ms(row.cells[profiles.baseline])
        return max(_ms(row.cells[i]) - base for i in profiles.candidates)

    return tuple(sorted(profiles.rows, key=lambda row: -cost(row)))


def _changes(profiles: Profiles, engine: int) -> Iterator[Change]:
    reference = profiles.engines[profiles.baseline]
    least, from_ratio = LEAST_SHARE * reference.total_ms, max(LEAST_RATIO, profiles.noise_ratio)
    for row in profiles.rows:
        cell, base = row.cells[engine], row.cells[profiles.baseline]
        difference = _ms(cell) - _ms(base)
        if abs(difference) < least or difference == 0.0:
            continue
        ratio = cell.ratio if cell is not None else 0.0
        if ratio is None or ratio >= from_ratio or ratio <= 1.0 / from_ratio:
            found = profiles.engines[engine]
            words = f"{row.label} {_compared(cell, base, reference.name)}"
            because = _because(found, cell, base) if cell is not None else ""
            yield Change(row, found.name, difference, ratio, f"{words}: {because}" if because else words)


def _compared(cell: LayerCell | None, base: LayerCell | None, reference: str) -> str:
    if cell is None:
        return f"is computed with other layers, or not at all ({_ms(base):.3f} ms saved)"
    if cell.ratio is None:
        return f"takes {cell.ms:.3f} ms ({100.0 * cell.share:.1f} %) and has no time in {reference}"
    times = f"({_ms(base):.3f} to {cell.ms:.3f} ms)"
    if cell.ratio >= 1.0:
        return f"got {cell.ratio:.1f}x slower {times}"
    return f"got {1.0 / cell.ratio:.1f}x faster {times}" if cell.ratio > 0.0 else f"takes no time any more {times}"


def _because(engine: EngineProfile, cell: LayerCell, base: LayerCell | None) -> str:
    """What the layers of a row are, as far as it can explain a difference."""
    kinds = ", ".join(cell.operators[:3]) + (", ..." if len(cell.operators) > 3 else "")
    in_float = bool(cell.precisions) and _FLOATS.issuperset(cell.precisions)
    types = " and ".join(cell.precisions)
    parts = []
    if in_float and cell.quantizes and engine.requested in _EIGHT_BITS:
        parts.append("it runs in float")
    elif kinds and types and (base is None or (cell.operators, cell.precisions) != (base.operators, base.precisions)):
        parts.append(f"it runs as {kinds} in {types}")
    conversions = [
        _many(cell.quantizes, "quantize/dequantize node"),
        _many(cell.reformats, "reformat") if base is None or cell.reformats != base.reformats else "",
    ]
    around = " and ".join(text for text in conversions if text)
    share = (cell.quantize_ms + cell.reformat_ms) / cell.ms if cell.ms > 0.0 else 0.0
    if around and share >= LEAST_SHARE:
        parts.append(f"with {around} around it, {100.0 * share:.0f} % of its time")
    return " ".join(parts)


def _of_engine(engine: EngineProfile) -> str:
    reformats, quantizes = engine.count(LayerKind.REFORMAT), engine.count(LayerKind.QUANTIZE)
    parts = [f"{engine.name}: {_many(len(engine.layers), 'layer') or 'no layers'}"]
    if reformats:
        verb = "takes" if reformats == 1 else "take"
        parts.append(f"{_many(reformats, 'reformat')} {verb} {_percent(engine, LayerKind.REFORMAT)} of their time")
    if quantizes:
        share = _percent(engine, LayerKind.QUANTIZE)
        parts.append(f"{_many(quantizes, 'quantize/dequantize node')} that nothing fused: {share} of their time")
    parts.append(f"the layers add up to {engine.total_ms:.3f} ms, a run without the profiler takes {engine.run_ms:.3f}")
    if engine.execution is Execution.EMULATED:
        parts.append(f"emulated: its times are not those of {engine.requested.value}")
    return "; ".join(parts) + "."


def _percent(engine: EngineProfile, kind: LayerKind) -> str:
    return f"{100.0 * engine.share(kind):.0f} %"


def _caveat(profiles: Profiles) -> str:
    return (
        f"Times are medians of {_many(profiles.rounds, 'round')} of {_many(profiles.runs, 'run')} at batch "
        f"{profiles.batch_size}, with a profiler that adds to every layer: they show where time goes, and are no "
        f"latencies. Two profiles of {profiles.reference} lie up to a factor of {profiles.noise_ratio:.2f} apart in "
        "95 % of its larger layers; smaller differences are not called slower or faster."
    )


def _left_out(profiles: Profiles) -> Iterator[str]:
    for name, reason in profiles.left_out.items():
        yield f"{name} has no profile: {reason}."


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if count else ""


def _ms(cell: LayerCell | None) -> float:
    return cell.ms if cell is not None else 0.0
