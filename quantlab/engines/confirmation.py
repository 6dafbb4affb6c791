"""The precision that an engine is proved to have: what its graph and its layers state, and a run shows."""

from __future__ import annotations

from quantlab.engines.fingerprint import Fingerprint
from quantlab.engines.tensorrt.inspector import LayerSummary, describe
from quantlab.graph.proof import Proof
from quantlab.precision import Precision

UNTYPED = (Precision.FP32, Precision.TF32)
"""Precisions that no type states: TF32 is how FP32 tensors are multiplied."""

_OPERANDS: dict[Precision, frozenset[str]] = {
    Precision.FP32: frozenset({"fp32"}),
    Precision.TF32: frozenset({"fp32"}),
    Precision.FP16: frozenset({"fp16"}),
    Precision.BF16: frozenset({"bf16"}),
    Precision.INT8: frozenset({"int8", "uint8"}),
    Precision.INT8_FP16: frozenset({"int8", "uint8"}),
    Precision.FP8: frozenset({"fp8"}),
}
"""Operand types that weighted layers of a precision have, by the inspector's names."""


def confirm(
    requested: Precision,
    graph: Proof | None,
    found: Fingerprint | None,
    layers: LayerSummary | None,
    *,
    is_float32: bool = False,
    inspector: str = "the inspector",
) -> tuple[Precision | None, str]:
    """Combine all that is known of an engine's precision.

    FP32 and TF32 are proved by a run alone. Where types leave nothing else, the size of the error decides between them
    whatever its direction, for kernels differ in which layers they run in TF32, and the emulations know only some.

    Other precisions are stated by the types of the graph, which a builder of strongly typed networks must obey; a run
    or the inspector confirms them, or takes the proof away by contradicting them.

    Args:
        requested: What was asked for.
        graph: What was found in the graph that the engine was built from; None if its types bind nobody.
        found: What a run on a probe showed; None if there was none.
        layers: What the inspector says; None if it was not asked.
        is_float32: Whether all weighted layers are known to have 32-bit operands, from a graph whose types bind; the
            inspector's word for it does as well.
        inspector: Who says what the layers are, in words.

    Returns:
        The proved precision, None if nothing is proved; and how, in words. What differs from the request comes first.
    """
    possible = _narrowed(found, layers) if found is not None else ()
    shown = found.precision if found is not None else None
    if shown is None and len(possible) == 1 and found is not None and len(found.possible) > 1:
        shown = possible[0]
    by_size = None
    if requested in UNTYPED and shown is None and found is not None and (is_float32 or _all_float32(layers)):
        by_size = shown = _by_size(found)
    stated = graph.precision if graph is not None and graph.precision not in UNTYPED else None
    lacking = stated is not None and _lacks(stated, layers)
    against = found is not None and stated is not None and _contradicts(stated, shown, found)
    by_types = None if lacking else stated
    proved = shown if requested in UNTYPED or stated is None or against else by_types
    parts = [_verdict(requested, proved, found is not None)]
    if lacking and stated is not None:
        parts.append(f"{inspector} shows no weighted layer with {stated.upper()} operands")
    if against and stated is not None:
        parts.append(f"the run contradicts the graph, which says {stated.upper()}")
    parts += [graph.text] if graph is not None and requested not in UNTYPED else []
    parts += [found.text] if found is not None else []
    if found is not None and by_size is not None:
        parts.append(f"its types leave FP32 or TF32, and the error is {found.multiple:,.0f} times FP32's")
    elif found is not None and shown is not found.precision and shown is not None:
        parts.append(f"{inspector}'s types leave {shown.upper()} alone")
    parts += describe(layers) if layers is not None else ()
    return proved, "; ".join(part for part in parts if part)


def _narrowed(found: Fingerprint, layers: LayerSummary | None) -> tuple[Precision, ...]:
    """Precisions that the run leaves and for which the engine has the operands."""
    if layers is None:
        return found.possible
    return tuple(precision for precision in found.possible if not _lacks(precision, layers))


def _by_size(found: Fingerprint) -> Precision | None:
    """FP32 or TF32, if the error can be of one of these alone and nothing else in the outputs contradicts it."""
    left = tuple(p for p in found.possible if p in UNTYPED) if found.possible else found.sizes
    return left[0] if len(left) == 1 else None


def _all_float32(layers: LayerSummary | None) -> bool:
    """Whether the inspector states the operands of all weighted layers, and all are 32-bit floats."""
    return layers is not None and set(layers.weighted_by_precision) == {"fp32"}


def _lacks(precision: Precision, layers: LayerSummary | None) -> bool:
    """Whether the inspector states the operands of all weighted layers, and none is of this precision."""
    if layers is None or precision not in _OPERANDS:
        return False
    operands = layers.weighted_by_precision
    stated = bool(operands) and all(name in {n for names in _OPERANDS.values() for n in names} for name in operands)
    return stated and _OPERANDS[precision].isdisjoint(operands)


def _contradicts(stated: Precision, shown: Precision | None, found: Fingerprint) -> bool:
    """Whether a run excludes the precision that the graph states."""
    if found.follows_own is not None:
        return not found.follows_own
    if shown is not None:
        return shown is not stated
    return bool(found.possible) and stated not in found.possible


def _verdict(requested: Precision, proved: Precision | None, was_run: bool) -> str:
    if proved is not None and proved is not requested:
        return f"NOT {requested.upper()}: {proved.upper()}"
    if proved is None and not was_run and requested in UNTYPED:
        return f"nothing but a run on a GPU can show {requested.upper()}"
    return "" if proved is not None else f"{requested.upper()} is not proved"
