"""Tango's score interval for the difference of paired proportions.

Reference: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
design", Statistics in Medicine 17 (1998) 891-908. Unlike Wald's interval it stays inside [-1, 1] and keeps its coverage
when no sample, or almost none, changes sides, which is the usual case for a good INT8 model.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from scipy.optimize import brentq

from quantlab.errors import GateError


def loss_upper_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided upper confidence bound of the loss of accuracy, ``P(right -> wrong) - P(wrong -> right)``.

    The largest loss ``d`` that the score test of level ``alpha`` does not reject: the root above ``(b - c) / n`` of
    ``n d - (b - c) = z sqrt(n (2 q(d) + d (1 - d)))``, where ``q(d)`` is the restricted maximum-likelihood estimate of
    the probability of ``c`` (Tango 1998, equations 10 to 12).

    Args:
        b: Samples that the reference gets right and the candidate wrong.
        c: Samples that the reference gets wrong and the candidate right.
        n: Samples in all, the concordant ones included.
        alpha: One-sided error probability, above 0 and below 0.5.

    Returns:
        The bound as a fraction (not percentage points), in [-1, 1].

    Raises:
        GateError: If the counts are impossible or ``alpha`` is out of range.

    Examples:
        >>> round(100 * loss_upper_bound(41, 14, 2000, 0.05), 2)
        2.0
        >>> round(100 * loss_upper_bound(0, 0, 500, 0.05), 2)
        0.54
    """
    _check(b, c, n, alpha)
    z = NormalDist().inv_cdf(1.0 - alpha)
    if b + c == n:
        return _wilson_upper((b - c) / n, n, z)
    if b + c == 0:
        return z * z / (n + z * z)

    # Between here and 1 the function rises through its only root: where the variance is 0 at the estimate, and the
    # estimate itself would be a second root, one of the two closed forms above has already answered.
    def excess(loss: float) -> float:
        return n * loss - (b - c) - z * math.sqrt(n * _variance(b, c, n, loss))

    return float(brentq(excess, (b - c) / n, 1.0, xtol=1e-15, rtol=4 * math.ulp(1.0)))


def loss_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided lower confidence bound of the loss; arguments and errors as for `loss_upper_bound`."""
    return -loss_upper_bound(c, b, n, alpha)


def loss_interval(b: int, c: int, n: int, alpha: float) -> tuple[float, float]:
    """Both one-sided bounds: a two-sided interval of coverage ``1 - 2 alpha``, as fractions.

    Raises:
        GateError: As for `loss_upper_bound`.
    """
    return loss_lower_bound(b, c, n, alpha), loss_upper_bound(b, c, n, alpha)


def _variance(b: int, c: int, n: int, loss: float) -> float:
    """Variance of one pair's contribution under ``loss``: ``2 q + d (1 - d)`` with Tango's restricted estimate of q."""
    linear = (2 * n - b + c) * loss - (b + c)
    constant = -c * loss * (1.0 - loss)
    root = math.sqrt(max(linear * linear - 8.0 * n * constant, 0.0))
    # The two forms of the same root of 2n q^2 + linear q + constant; each avoids the other's cancellation.
    q = -2.0 * constant / (linear + root) if linear > 0.0 else (root - linear) / (4.0 * n)
    return max(2.0 * q + loss * (1.0 - loss), 0.0)


def _wilson_upper(estimate: float, n: int, z: float) -> float:
    """Upper bound when every pair is discordant: Wilson's, moved from [0, 1] to [-1, 1] (the variance is 1 - d^2)."""
    shrink = z * z / n
    spread = math.sqrt(shrink * (1.0 - estimate * estimate + shrink))
    return min((estimate + spread) / (1.0 + shrink), 1.0)


def _check(b: int, c: int, n: int, alpha: float) -> None:
    if not (0.0 < alpha < 0.5):
        raise GateError("the error probability alpha is out of range", got=alpha, expected="above 0 and below 0.5")
    if n < 1 or b < 0 or c < 0 or b + c > n:
        raise GateError(
            "the paired counts are impossible",
            got=f"b={b}, c={c}, n={n}",
            expected="b and c of at least 0, n of at least 1, and b + c of at most n",
        )
