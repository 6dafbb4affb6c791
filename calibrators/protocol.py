"""What a range method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quantlab.calibrators.distribution import Distribution
from quantlab.calibrators.quantize import Scheme


@dataclass(frozen=True, slots=True)
class MethodRange:
    """A range chosen by a method.

    Attributes:
        low: Lower bound; ``-high`` for symmetric schemes.
        high: Upper bound; amax for symmetric schemes.
        fallback: Why the method has no meaning for this tensor and min-max was used instead; None if it has.
        candidates: Ranges that were compared; 1 for methods that do not search, and where there was no use in it.
    """

    low: float
    high: float
    fallback: str | None = None
    candidates: int = 1


class RangeMethod(Protocol):
    """Chooses the range of a tensor from the distribution of its values."""

    @property
    def name(self) -> str:
        """Name on the command line, in tables and in variants."""
        ...

    @property
    def searches(self) -> bool:
        """Whether it compares candidates: then one candidate without a fallback is an error."""
        ...

    def choose(self, distribution: Distribution, scheme: Scheme) -> MethodRange:
        """The range for ``scheme``, within the distribution's exact minimum and maximum.

        Symmetric schemes get ``(-amax, amax)``.
        """
        ...
