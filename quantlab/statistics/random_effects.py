"""Estimates of several groups, which differ among themselves, combined into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Combined:
    """A mean over groups.

    Attributes:
        mean: Weighted mean.
        error: Its standard error.
        between: Standard deviation between the groups beyond what their own errors explain.
        within: Root mean square of the groups' own errors.
        groups: Number of groups.
    """

    mean: float
    error: float
    between: float
    within: float
    groups: int

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Student's interval with ``groups - 1`` degrees of freedom; infinite for one group."""
        if self.groups < 2:
            return -math.inf, math.inf
        half = float(stdtrit(self.groups - 1, (1.0 + confidence) / 2.0)) * self.error
        return self.mean - half, self.mean + half


def combine(means: Floats, errors: Floats) -> Combined:
    """Random-effects mean of groups.

    The variance between groups is DerSimonian and Laird's (Controlled Clinical Trials 7, 1986); the error of the mean
    is that of Hartung and Knapp (Statistics in Medicine 20, 2001), which holds its level with few groups, and never
    below that of the weights alone (Roever, Knapp and Friede, BMC Medical Research Methodology 15, 2015), lest three
    groups that agree by chance look exact.

    Args:
        means: Estimate of each group, shape (groups,).
        errors: Standard error of each, shape (groups,). If one is infinite, which means that nothing is known of it, so
            is that of the mean.
    """
    groups = len(means)
    if not np.all(np.isfinite(errors)):
        return Combined(float(np.mean(means)), math.inf, 0.0, math.inf, groups)
    floor = max(float(np.max(errors)) * 1e-6, 1e-12)  # groups without any spread still have finite weights
    variances = np.maximum(errors, floor) ** 2
    weights = 1.0 / variances
    total = float(np.sum(weights))
    fixed = float(np.sum(weights * means)) / total
    spread = float(np.sum(weights * (means - fixed) ** 2))
    scale = total - float(np.sum(weights**2)) / total
    between = max(0.0, (spread - (groups - 1)) / scale) if groups > 1 else 0.0
    weights = 1.0 / (variances + between)
    total = float(np.sum(weights))
    mean = float(np.sum(weights * means)) / total
    ratio = float(np.sum(weights * (means - mean) ** 2)) / (groups - 1) if groups > 1 else 1.0
    error = math.sqrt(max(1.0, ratio) / total)
    return Combined(mean, error, math.sqrt(between), math.sqrt(float(np.mean(errors**2))), groups)
