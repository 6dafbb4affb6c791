"""Clopper and Pearson's exact bounds for one proportion.

Reference: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404-413. They never cover less than they say, which is
why the gate prefers them to Wilson's for a single proportion.
"""

from __future__ import annotations

from scipy.special import betaincinv

from quantlab.errors import GateError


def proportion_lower_bound(k: int, n: int, alpha: float) -> float:
    """One-sided lower confidence bound of a proportion.

    Args:
        k: Successes.
        n: Trials.
        alpha: One-sided error probability, above 0 and below 0.5.

    Returns:
        The bound as a fraction in [0, 1].

    Raises:
        GateError: If the counts are impossible or ``alpha`` is out of range.

    Examples:
        >>> round(proportion_lower_bound(299, 299, 0.05), 4)
        0.99
    """
    if not (0.0 < alpha < 0.5):
        raise GateError("the error probability alpha is out of range", got=alpha, expected="above 0 and below 0.5")
    if n < 1 or not (0 <= k <= n):
        raise GateError("the counts of a proportion are impossible", got=f"{k} of {n}", expected="0 <= k <= n, n >= 1")
    return 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha))


def proportion_upper_bound(k: int, n: int, alpha: float) -> float:
    """One-sided upper confidence bound; arguments and errors as for `proportion_lower_bound`."""
    return 1.0 - proportion_lower_bound(n - k, n, alpha)
