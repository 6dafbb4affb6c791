"""How many images a verdict needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from quantlab.errors import ConfigError

POWERS = (0.8, 0.9)
"""Probabilities of a PASS, if the assumed loss is true, that plans are made for."""

_SMALLEST_MARGIN = 1e-9


@dataclass(frozen=True, slots=True)
class Plan:
    """Images needed to show that a candidate loses less than a margin.

    Attributes:
        margin_pp: Non-inferiority margin in percentage points.
        discordance_pct: Samples on which reference and candidate differ in being right, in percent.
        true_loss_pp: Loss assumed to be true, in percentage points.
        alpha: One-sided error probability.
        images: Images needed, by power in the order of ``powers``.
        powers: Probability of a PASS.
    """

    margin_pp: float
    discordance_pct: float
    true_loss_pp: float
    alpha: float
    images: tuple[int, ...]
    powers: tuple[float, ...] = POWERS


def plan_non_inferiority(
    margin_pp: float, discordance_pct: float, *, true_loss_pp: float = 0.0, alpha: float = 0.05
) -> Plan:
    """Plan the images for ``claim = "non-inferior"`` at 80 and 90 % power.

    Args:
        margin_pp: Margin in percentage points, above 0.
        discordance_pct: Expected share of flips ``(b + c) / n`` in percent.
        true_loss_pp: Loss assumed to be true, in percentage points; below the margin.
        alpha: One-sided error probability.

    Raises:
        ConfigError: If a value is out of range or no number of images suffices.
    """
    images = tuple(
        images_for_margin(
            margin_pp / 100, discordance_pct / 100, true_loss=true_loss_pp / 100, alpha=alpha, power=power
        )
        for power in POWERS
    )
    return Plan(margin_pp, discordance_pct, true_loss_pp, alpha, images)


def images_for_margin(
    margin: float, discordance: float, *, true_loss: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Images needed for the one-sided score test of non-inferiority; all arguments are fractions.

    Normal approximation for a paired difference: ``(z_alpha + z_power)^2 (d - t^2) / (m - t)^2`` with discordance d,
    true loss t and margin m, and never fewer than the images at which not a single flip would pass
    (``z_alpha^2 (1 - m) / m``, from Tango's bound at b = c = 0).

    Raises:
        ConfigError: If a value is out of range or no number of images suffices.

    Examples:
        >>> images_for_margin(0.005, 0.02)
        4947
    """
    _check_probabilities(alpha, power)
    if not _SMALLEST_MARGIN <= margin < 1.0:
        expected = f"above 0 (at least {100 * _SMALLEST_MARGIN:g}) and below 100 pp"
        raise ConfigError("the margin is out of range", got=f"{100 * margin:g} pp", expected=expected)
    if not abs(true_loss) <= discordance <= 1.0:
        raise ConfigError(
            "the discordance is out of range",
            got=f"{100 * discordance:g} %",
            expected=f"from {100 * abs(true_loss):g} (the assumed loss) to 100 %",
        )
    if margin - true_loss < _SMALLEST_MARGIN:
        raise ConfigError(
            "no number of images can show a loss below the margin if the true loss is not below it",
            got=f"true loss {100 * true_loss:g} pp, margin {100 * margin:g} pp",
            expected="a true loss below the margin",
        )
    z_alpha, z_power = -NormalDist().inv_cdf(alpha), NormalDist().inv_cdf(power)
    variance = discordance - true_loss * true_loss
    paired = (z_alpha + z_power) ** 2 * variance / (margin - true_loss) ** 2
    no_flip = z_alpha**2 * (1.0 - margin) / margin
    return _round_up(max(paired, no_flip))


def images_for_proportion(limit: float, expected: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Images needed to show that a proportion is at least ``limit`` when it is ``expected``; both are fractions.

    Normal approximation for one proportion, and never fewer than ``ln(alpha) / ln(limit)``, at which a set without a
    single failure would pass the exact bound.

    Returns:
        The number, or None if ``expected`` is not above ``limit``: then no number suffices.

    Raises:
        ConfigError: If ``alpha`` or ``power`` is out of range.
    """
    _check_probabilities(alpha, power)
    if not 0.0 < limit < 1.0 or expected <= limit:
        return None
    z_alpha, z_power = -NormalDist().inv_cdf(alpha), NormalDist().inv_cdf(power)
    spread = z_alpha * math.sqrt(limit * (1.0 - limit)) + z_power * math.sqrt(expected * (1.0 - expected))
    normal = (spread / (expected - limit)) ** 2
    return _round_up(max(normal, math.log(alpha) / math.log(limit)))


def _check_probabilities(alpha: float, power: float) -> None:
    if not 0.0 < alpha < 0.5:
        raise ConfigError("the error probability alpha is out of range", got=alpha, expected="above 0 and below 0.5")
    if not 0.5 <= power < 1.0:
        raise ConfigError("the power is out of range", got=power, expected="from 0.5 to below 1")


def _round_up(images: float) -> int:
    return max(1, math.ceil(images - 1e-9))
