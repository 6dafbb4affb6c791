"""The range methods by name."""

from __future__ import annotations

from quantlab.calibrators.entropy import Entropy
from quantlab.calibrators.minmax import MinMax
from quantlab.calibrators.mse import MeanSquaredError
from quantlab.calibrators.percentile import Percentile
from quantlab.calibrators.protocol import RangeMethod
from quantlab.documents import near_match
from quantlab.errors import ConfigError

METHOD_NAMES = ("minmax", "percentile", "entropy", "mse")
DEFAULT_METHOD = "mse"

AUTO = "auto"
"""Not a method of its own: for each tensor the method that serves the model's outputs best."""

IMPORTED = "imported"
"""Not a method of ours: ranges that were read from somebody else's file."""


def range_methods(percentile: float = 99.99) -> tuple[RangeMethod, ...]:
    """One of every method.

    Args:
        percentile: Share of values that the percentile method keeps, in per cent.

    Raises:
        ConfigError: If ``percentile`` is not in (50, 100].
    """
    try:
        return (MinMax(), Percentile(percentile), Entropy(), MeanSquaredError())
    except ValueError as cause:
        raise ConfigError(
            "the percentile is out of range", got=percentile, expected="more than 50, at most 100"
        ) from cause


def check_method(name: str) -> str:
    """Return ``name`` if ranges can be asked for by it.

    Raises:
        ConfigError: With the nearest name.
    """
    known = (*METHOD_NAMES, AUTO)
    if name in (*known, IMPORTED):
        return name
    near = near_match(name, known)
    raise ConfigError(
        f"there is no range method {name!r}",
        expected=", ".join(known),
        hint=f"did you mean {near!r}?" if near else None,
    )
