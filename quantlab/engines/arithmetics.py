"""The arithmetics that an engine's errors are compared with: what their emulations show, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping

from quantlab.engines.emulation import (
    BF16,
    BF16_TAIL,
    FP16,
    FP16_TAIL,
    FP32,
    OWN,
    OWN_TF32,
    TF32,
    TF32_ALIGNED,
    TF32_NARROW_CUT,
    TF32_TRUNCATED,
)
from quantlab.precision import Precision

SHALLOW, HALFWAY, DEEP = 0.3, 0.6, 0.8
"""Least correlation with an emulation: of roundings that decorrelate with depth, of the same where the shapes of layers
must decide on them besides, and of reproducible ones."""

RULES: Mapping[str, tuple[float, float, float]] = {
    TF32: (0.3, 3.0, SHALLOW),
    TF32_TRUNCATED: (0.5, 2.0, DEEP),
    TF32_ALIGNED: (0.6, 1.6, HALFWAY),
    TF32_NARROW_CUT: (0.6, 1.6, HALFWAY),
    FP16: (0.55, 4.0, SHALLOW),
    FP16_TAIL: (0.55, 4.0, SHALLOW),
    BF16: (0.4, 2.5, SHALLOW),
    BF16_TAIL: (0.4, 2.5, SHALLOW),
}
"""Least and largest error in errors of the emulation, and least correlation with it."""

PRECISIONS: Mapping[str, Precision] = {
    FP32: Precision.FP32,
    TF32: Precision.TF32,
    TF32_TRUNCATED: Precision.TF32,
    TF32_ALIGNED: Precision.TF32,
    TF32_NARROW_CUT: Precision.TF32,
    FP16: Precision.FP16,
    FP16_TAIL: Precision.FP16,
    BF16: Precision.BF16,
    BF16_TAIL: Precision.BF16,
}

TAILS = (FP16_TAIL, BF16_TAIL)


def spoken(arithmetic: str) -> str:
    """What is compared with, in a text: ``TF32's``."""
    names = {
        OWN: "its own graph's",
        OWN_TF32: "its own graph's",
        TF32_TRUNCATED: "truncated TF32's",
        TF32_ALIGNED: "TF32's in aligned layers",
        TF32_NARROW_CUT: "TF32's in aligned layers, truncated in narrow ones",
    }
    arithmetic = arithmetic.removesuffix("-float-tail")
    return names.get(arithmetic, f"{arithmetic.upper()}'s")
