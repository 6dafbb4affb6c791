"""McNemar's exact test: reported for information, never used for a verdict.

It asks whether the two models differ at all. That a difference was not found does not make a release safe, and a
difference that was found may be far inside the margin; see docs/adr/005-gate-statistics.md.
"""

from __future__ import annotations

from scipy.special import bdtr

from quantlab.errors import GateError


def mcnemar_p(b: int, c: int) -> float:
    """Two-sided exact p-value: how unlikely a split at least as uneven as ``b`` to ``c`` is for a fair coin.

    Args:
        b: Samples that went from right to wrong.
        c: Samples that went from wrong to right.

    Returns:
        The p-value in (0, 1]; 1 when nothing changed sides.

    Raises:
        GateError: If a count is negative.

    Examples:
        >>> mcnemar_p(6, 0)
        0.03125
    """
    if b < 0 or c < 0:
        raise GateError("a count of changed samples is negative", got=f"b={b}, c={c}", expected="at least 0")
    return min(1.0, 2.0 * float(bdtr(min(b, c), b + c, 0.5)))
