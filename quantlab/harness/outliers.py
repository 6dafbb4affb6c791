"""Timings beyond Tukey's fences: counted, never dropped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.harness.measurement import Outliers

MILD, SEVERE = 1.5, 3.0
"""Fences in interquartile ranges beyond the quartiles (Tukey, "Exploratory Data Analysis", 1977)."""
LEAST_SPREAD = 1e-3
"""Least interquartile range, as share of the third quartile: where most timings are one and the same step of a coarse
clock, a single step more would be severe."""


def classify_outliers(values: NDArray[np.float64]) -> Outliers:
    """Count them.

    Args:
        values: Timings, in any unit and order, at least one.
    """
    first, third = np.quantile(values, [0.25, 0.75])
    spread = max(third - first, LEAST_SPREAD * third)
    low_severe, low_mild = (int(np.sum(values < first - fence * spread)) for fence in (SEVERE, MILD))
    high_severe, high_mild = (int(np.sum(values > third + fence * spread)) for fence in (SEVERE, MILD))
    return Outliers(low_severe, low_mild - low_severe, high_mild - high_severe, high_severe)
