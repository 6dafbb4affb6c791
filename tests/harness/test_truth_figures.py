"""Figures of a verdict against hand computations, and their intervals against SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from quantlab.harness.gap import GapMeter
from quantlab.harness.truth_figures import (
    Distances,
    Estimate,
    excess,
    loss,
    nearness,
    rounding_limit,
    sqnr,
    truth_figures,
)
from quantlab.statistics.bootstrap import Resampling
from quantlab.statistics.interval import Interval

Floats = NDArray[np.float64]

N = 24
RNG = np.random.default_rng(11)
ORIGINAL = RNG.standard_normal((N, 6))
GRAPH = ORIGINAL + 0.1 * RNG.standard_normal((N, 6))
FLOAT = GRAPH + 0.005 * RNG.standard_normal((N, 6))
RUNTIME = GRAPH + 0.08 * RNG.standard_normal((N, 6))


def terms(reference: Floats, value: Floats) -> Floats:
    return np.array([GapMeter().add(a[None], b[None]) for a, b in zip(reference, value, strict=True)])


def distances(runtime: Floats = RUNTIME) -> Distances:
    return Distances(
        own=terms(GRAPH, runtime),
        rounding=terms(GRAPH, FLOAT),
        total=terms(ORIGINAL, runtime),
        quantization=terms(ORIGINAL, GRAPH),
        rounded=terms(ORIGINAL, FLOAT),
    )


def decibels(reference: Floats, value: Floats) -> float:
    return 10 * math.log10(float(np.sum(reference**2)) / float(np.sum((reference - value) ** 2)))


def numbers(*values: float) -> Floats:
    return np.array(values)


def test_values() -> None:
    found = truth_figures(distances(), True, N, Resampling(200))
    assert found.own is not None
    assert found.loss is not None
    assert found.excess is not None
    lost = decibels(ORIGINAL, GRAPH) - decibels(ORIGINAL, RUNTIME)
    assert found.own.value == pytest.approx(decibels(GRAPH, RUNTIME))
    assert found.nearness.value == pytest.approx(decibels(GRAPH, RUNTIME) - (decibels(GRAPH, FLOAT) - 3.0))
    assert found.loss.value == pytest.approx(lost)
    assert found.excess.value == pytest.approx(lost - max(0.0, decibels(ORIGINAL, GRAPH) - decibels(ORIGINAL, FLOAT)))


def test_intervals_are_those_of_scipy() -> None:
    """The same BCa bootstrap by samples, of the loss, which is paired: numbers of samples are what is drawn."""

    def lost(chosen: NDArray[np.intp]) -> float:
        picked = [array[chosen] for array in (ORIGINAL, GRAPH, RUNTIME)]
        return decibels(picked[0], picked[1]) - decibels(picked[0], picked[2])

    expected = stats.bootstrap(
        (np.arange(N),), lost, n_resamples=4000, vectorized=False, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    found = truth_figures(distances(), True, N, Resampling(4000, 5)).loss
    assert found is not None
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_pairing_makes_the_interval_of_a_loss_narrow() -> None:
    """Samples of very different error: the distances vary a lot, their difference does not."""
    size = np.geomspace(0.01, 1.0, N)[:, None]
    graph = ORIGINAL + 0.1 * size
    runtime = ORIGINAL + 0.11 * size
    found = truth_figures(
        Distances(terms(graph, runtime), None, terms(ORIGINAL, runtime), terms(ORIGINAL, graph), None),
        True,
        N,
        Resampling(),
    )
    assert found.own is not None
    assert found.own.interval is not None
    assert found.own.interval.high - found.own.interval.low > 1.0
    assert found.loss is not None
    assert found.loss.interval is not None
    assert found.loss.value == pytest.approx(20 * math.log10(1.1))
    assert found.loss.interval.high - found.loss.interval.low < 1e-6


def test_the_seed_is_obeyed() -> None:
    first, again, other = (truth_figures(distances(), True, N, Resampling(500, seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("n", [1, 9])
def test_too_few(n: int) -> None:
    found = truth_figures(Distances(terms(GRAPH, RUNTIME)[:n], None, None, None, None), True, n, Resampling())
    assert found.own is not None
    assert found.own.interval is None
    assert found.own.missing == (
        "1 sample is too few for an interval" if n == 1 else "9 samples are too few for an interval"
    )
    assert found.own.value == pytest.approx(decibels(GRAPH[:n], RUNTIME[:n]))
    assert found.loss is None


def test_repeats_are_no_more_samples() -> None:
    found = truth_figures(distances(), True, 3, Resampling()).own
    assert found is not None
    assert (found.interval, found.missing) == (None, "3 different samples are too few for an interval")


def test_integers() -> None:
    """12 of 240 values differ where float32 as written has 3: 3.75 % more."""
    own, usual = np.zeros((N, 10), np.int64), np.zeros((N, 10), np.int64)
    own[:12, 0], usual[:3, 0] = 1, 1
    zeros = np.zeros_like(own)
    both = [
        np.array([GapMeter().add(a[None], b[None]) for a, b in zip(zeros, one, strict=True)]) for one in (own, usual)
    ]
    found = truth_figures(Distances(both[0], both[1], None, None, None), False, N, Resampling())
    assert found.nearness.value == pytest.approx(-3.75)
    assert found.nearness.interval is not None
    assert found.nearness.interval.low < -3.75 < found.nearness.interval.high < 0.0
    assert found.own is None
    alone = truth_figures(Distances(both[1], both[1], None, None, None), False, N, Resampling())
    assert alone.nearness == Estimate(0.0, Interval(0.0, 0.0, 0.95))


def test_values_that_are_not_finite_or_overflow() -> None:
    runtime = RUNTIME.copy()
    runtime[3, 2] = math.nan
    found = truth_figures(distances(runtime), True, N, Resampling())
    assert found.own is not None
    assert found.loss is not None
    assert (found.own.value, found.loss.value) == (-math.inf, math.inf)
    found = truth_figures(distances(RUNTIME * 1e200), True, N, Resampling())
    assert found.own is not None
    assert found.own.value == -math.inf


def test_ends_of_the_scale() -> None:
    sums = np.array([[1.0, 0, 0, 0, 1], [0, 1.0, 0, 1, 1], [1.0, 1.0, 1, 1, 2], [100.0, 1.0, 0, 1, 1], [0, 0, 0, 0, 0]])
    assert sqnr(sums) == pytest.approx([math.inf, -math.inf, -math.inf, 20.0, math.nan], nan_ok=True)
    assert rounding_limit(numbers(100.0, 50.0)) == pytest.approx([60.0, 47.0])
    assert nearness(numbers(math.inf), None) == pytest.approx([math.inf])
    assert nearness(numbers(-math.inf), numbers(-math.inf)) == pytest.approx([0.0])
    assert loss(numbers(math.inf, 20.0, 120.0, -math.inf), numbers(math.inf)) == pytest.approx([0, 40, 0, math.inf])
    assert excess(numbers(2.0, 2.0, 2.0), numbers(0.5, -0.5, math.inf)) == pytest.approx([1.5, 2.0, 2.0])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((0.5, 1.0), True), ((0.0, 0.49), False), ((0.0, 0.5), None), ((0.4, 0.9), None)],
)
def test_reaching_a_limit(bounds: tuple[float, float], expected: bool | None) -> None:
    assert Estimate(0.45, Interval(*bounds, 0.95)).reaches(0.5) is expected


def test_without_an_interval_the_figure_decides() -> None:
    assert Estimate(0.5, None).reaches(0.5) is True
    assert Estimate(0.4, None).reaches(0.5) is False
    assert Estimate(0.4, None).samples_needed(4, 0.5) is None


def test_infinities_need_no_number_of_samples() -> None:
    assert Estimate(math.inf, Interval(-1.0, math.inf, 0.95)).samples_needed(20, 0.0) is None
