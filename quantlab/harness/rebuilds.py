"""Builds of one variant against each other: a compiler that times kernels does not build the same engine twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from quantlab.errors import MeasurementError
from quantlab.harness.measurement import Latency
from quantlab.statistics.interval import Interval


@dataclass(frozen=True, slots=True)
class Build:
    """One build of a variant.

    Attributes:
        sha256: Hash of the engine file.
        build_s: Time that building took.
        median_ms: Its latency.
        ratio: To the reference engine, from interleaved rounds.
        ratio_interval: Of the ratio.
        log_error: Standard error of the natural logarithm of the ratio; None where only the interval is known.
    """

    sha256: str
    build_s: float
    median_ms: float
    ratio: float
    ratio_interval: Interval
    log_error: float | None = None


@dataclass(frozen=True, slots=True)
class Rebuilds:
    """The builds of one variant, timed in one set of interleaved rounds.

    The variance of the builds' log-ratios holds that of measuring them; what is left after taking the mean of the
    latter from it is between builds (a random-effects model; DerSimonian and Laird 1986, with equal weights).

    Attributes:
        engine: Name of the variant.
        builds: Each of them.
        different_files: How many of the files differ.
        ratio: Geometric mean of the builds' ratios to the reference.
        interval: Of that mean, over all builds that could be made, not of these alone (Student t); never narrower than
            the error of measuring them allows. One build may lie outside, see ``between_percent``.
        between_percent: Standard deviation between builds.
        within_percent: Standard error of measuring one build.
    """

    engine: str
    builds: tuple[Build, ...]
    different_files: int
    ratio: float
    interval: Interval
    between_percent: float
    within_percent: float


def built(sha256: str, build_s: float, latency: Latency) -> Build:
    """One build from its latency."""
    return Build(sha256, build_s, latency.median_ms, latency.ratio, latency.ratio_interval, latency.log_error)


def rebuilds(engine: str, builds: Sequence[Build], confidence: float = 0.95) -> Rebuilds:
    """Split the variance of builds.

    Raises:
        MeasurementError: With fewer than two builds, which have no variance.
    """
    if len(builds) < 2:
        raise MeasurementError("builds can only be compared with each other", got=len(builds), expected="2 or more")
    logs = np.log([build.ratio for build in builds])
    errors = np.array([_log_error(build) for build in builds])
    within = float(np.mean(errors**2))
    variance = float(np.var(logs, ddof=1))
    center, n = float(np.mean(logs)), len(builds)
    # Builds that agree by chance are no more exact than their measurement, as in `quantlab.statistics.random_effects`.
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * np.sqrt(max(variance, within) / n)
    return Rebuilds(
        engine=engine,
        builds=tuple(builds),
        different_files=len({build.sha256 for build in builds}),
        ratio=float(np.exp(center)),
        interval=Interval(float(np.exp(center - half)), float(np.exp(center + half)), confidence),
        between_percent=100.0 * float(np.sqrt(max(variance - within, 0.0))),
        within_percent=100.0 * float(np.sqrt(within)),
    )


def _log_error(build: Build) -> float:
    """Standard error of a build's log-ratio; from its interval as if normal, where nothing else is known."""
    if build.log_error is not None:
        return build.log_error
    interval = build.ratio_interval
    return float(np.log(interval.high / interval.low) / 2 / stats.norm.ppf((1 + interval.confidence) / 2))
