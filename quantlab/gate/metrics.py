"""What a policy may check: the metrics, their units, and the claims that each supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Metric(StrEnum):
    """Metrics of a check."""

    TOP1 = "top1"
    """Top-1 accuracy, paired with the reference on the same samples."""
    TOP5 = "top5"
    """Top-5 accuracy."""
    AGREEMENT = "agreement"
    """Share of samples on which candidate and reference give the same top-1 class; needs no labels."""
    SQNR_DB = "sqnr_db"
    """Signal-to-quantization-noise ratio of the worst output, in dB."""
    COSINE = "cosine"
    """Mean cosine similarity of the worst output."""
    KL_NATS = "kl_nats"
    """Mean KL divergence of the class probabilities of the worst output, in nats."""
    MAX_ABS_ERROR = "max_abs_error"
    """Largest absolute difference in any output."""
    LATENCY_RATIO = "latency_ratio"
    """Latency of the candidate divided by the reference's; below 1 is faster."""
    SIZE_RATIO = "size_ratio"
    """Size of the candidate divided by the reference's; below 1 is smaller."""
    SCORE = "score"
    """A figure of the task by its name, such as ``figure = "map"``."""
    FINITE = "finite"
    """No output value is NaN or infinite."""
    NOT_CONSTANT = "not_constant"
    """No output is the same for every sample."""
    PRECISION_PROVED = "precision_proved"
    """The precision found in the engine is the one that was requested."""


class Claim(StrEnum):
    """What a check claims."""

    NON_INFERIOR = "non-inferior"
    """The confidence bound is inside the margin: holds for the population that the samples were drawn from."""
    AT_LEAST = "at-least"
    """The value, or its lower confidence bound where there is one, is at least the limit."""
    AT_MOST = "at-most"
    """The value, or its upper confidence bound where there is one, is at most the limit."""
    ON_THIS_SET = "on-this-set"
    """The value as measured meets the margin or limit: for contract sets, says nothing of other data."""


class Threshold(StrEnum):
    """What a check compares with."""

    MARGIN = "margin"
    """The largest loss against the reference."""
    LIMIT = "limit"
    """A value of the metric itself."""
    NONE = "nothing"
    """The metric is a yes or no."""


@dataclass(frozen=True, slots=True)
class MetricRules:
    """What a policy may say about a metric.

    Attributes:
        unit: Unit of the limit; empty for pure numbers.
        higher_is_better: Direction.
        thresholds: Allowed thresholds by claim; the first claim is the default.
    """

    unit: str
    higher_is_better: bool
    thresholds: Mapping[Claim, tuple[Threshold, ...]]

    @property
    def default_claim(self) -> Claim:
        """The claim of a check that names none."""
        return next(iter(self.thresholds))


def _rules(unit: str, higher_is_better: bool, **thresholds: tuple[Threshold, ...]) -> MetricRules:
    claims = {Claim(name.replace("_", "-")): allowed for name, allowed in thresholds.items()}
    return MetricRules(unit, higher_is_better, MappingProxyType(claims))


_MARGIN, _LIMIT, _NONE = (Threshold.MARGIN,), (Threshold.LIMIT,), (Threshold.NONE,)
_EITHER = (Threshold.MARGIN, Threshold.LIMIT)

METRICS: Mapping[Metric, MetricRules] = MappingProxyType(
    {
        Metric.TOP1: _rules("%", True, non_inferior=_MARGIN, at_least=_LIMIT, on_this_set=_EITHER),
        # No claim of non-inferiority: the comparison holds no paired counts of top-5 decisions.
        Metric.TOP5: _rules("%", True, on_this_set=_EITHER, at_least=_LIMIT),
        Metric.AGREEMENT: _rules("%", True, at_least=_LIMIT, non_inferior=_LIMIT, on_this_set=_LIMIT),
        Metric.SQNR_DB: _rules("dB", True, at_least=_LIMIT, on_this_set=_LIMIT),
        Metric.COSINE: _rules("", True, at_least=_LIMIT, on_this_set=_LIMIT),
        Metric.KL_NATS: _rules("nats", False, at_most=_LIMIT, on_this_set=_LIMIT),
        Metric.MAX_ABS_ERROR: _rules("", False, at_most=_LIMIT, on_this_set=_LIMIT),
        Metric.LATENCY_RATIO: _rules("x", False, at_most=_LIMIT, on_this_set=_LIMIT),
        Metric.SIZE_RATIO: _rules("x", False, at_most=_LIMIT, on_this_set=_LIMIT),
        Metric.SCORE: _rules("", True, non_inferior=_MARGIN, at_least=_LIMIT, at_most=_LIMIT, on_this_set=_EITHER),
        Metric.FINITE: _rules("", True, on_this_set=_NONE),
        Metric.NOT_CONSTANT: _rules("", True, on_this_set=_NONE),
        Metric.PRECISION_PROVED: _rules("", True, on_this_set=_NONE),
    }
)
"""Every metric with its rules; the order is the order of the documentation."""
