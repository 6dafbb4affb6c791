"""The entropy method against a loop that follows the published algorithm line by line."""

from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from calibrator_data import CONTINUOUS, ODD, distribution_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantlab.calibrators import SCHEMES, Distribution, Entropy, Scheme, sqnr_db
from quantlab.calibrators.entropy import BINS, LEVELS, WORST_LOSS_DB, kl_divergences, linear_bins

Array = NDArray[np.float64]
BOTH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def published(counts: list[float], levels: int, only: int | None = None) -> list[float]:
    """S. Migacz, GTC 2017 (S7310), slides 38 to 40, for every number of kept bins; one bin at a time."""
    divergences = []
    for kept in range(levels, len(counts) + 1) if only is None else [only]:
        reference = [*counts[:kept]]
        reference[-1] += sum(counts[kept:])
        candidate = [0.0] * kept
        for level in range(levels):
            bins = range(level * kept // levels, (level + 1) * kept // levels)
            filled = [i for i in bins if counts[i] > 0]
            for i in filled:
                candidate[i] = sum(counts[j] for j in bins) / len(filled)
        p_total, q_total = sum(reference), sum(candidate)
        divergence = 0.0
        for p, q in zip(reference, candidate, strict=True):
            if p > 0:
                divergence += p / p_total * math.log(p / p_total * q_total / q) if q > 0 else math.inf
        divergences.append(divergence)
    return divergences


COUNTS = st.one_of(
    hnp.arrays(np.float64, st.integers(8, 60), elements=st.integers(0, 5).map(float)),
    hnp.arrays(np.float64, st.integers(8, 60), elements=st.floats(0, 1e6).map(lambda x: x if x > 1e-3 else 0.0)),
    hnp.arrays(np.float64, st.integers(8, 60), elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 1e9])),
).filter(lambda counts: counts.sum() > 0)


@settings(deadline=None, max_examples=300)
@given(counts=COUNTS, levels=st.integers(1, 8))
def test_equals_the_published_loop(counts: Array, levels: int) -> None:
    expected = np.array(published(counts.tolist(), levels))
    got = kl_divergences(counts, levels)
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_outliers_behind_an_empty_bin_are_impossible() -> None:
    """A threshold in a gap moves the outliers to a bin that the quantized distribution leaves empty."""
    counts = np.array([4.0, 3, 2, 1, 0, 0, 5])
    assert np.isinf(kl_divergences(counts, 2)[3:5]).all()
    assert np.isfinite(kl_divergences(counts, 2)[[0, 1, 2, 5]]).all()


def test_a_full_size_search() -> None:
    """2,048 bins to 128 levels; the loop is slow, so only some candidates, one at a time."""
    counts = np.abs(np.random.default_rng(3).standard_normal(BINS)) * np.linspace(100, 1, BINS)
    got = kl_divergences(counts, LEVELS)
    assert len(got) == BINS - LEVELS + 1
    for kept in (LEVELS, LEVELS + 1, 205, 511, BINS):
        assert got[kept - LEVELS] == pytest.approx(published(counts.tolist(), LEVELS, only=kept)[0], rel=1e-9)


@given(
    edges=hnp.arrays(np.float64, 6, elements=st.floats(0.01, 10), unique=True).map(np.sort),
    mass=hnp.arrays(np.float64, 3, elements=st.integers(1, 1000).map(float)),
    bins=st.integers(1, 50),
)
def test_linear_bins_spread_evenly(edges: Array, mass: Array, bins: int) -> None:
    low, high = edges[::2], edges[1::2]
    counts = linear_bins(Distribution(low, high, mass, low[0], high[-1]), float(high[-1]), bins)
    points = np.linspace(0, high[-1], bins + 1)
    expected = [
        sum(m * max(min(b, right) - max(a, left), 0) / (b - a) for a, b, m in zip(low, high, mass, strict=True))
        for left, right in itertools.pairwise(points)
    ]
    np.testing.assert_allclose(counts, expected, rtol=1e-6, atol=1e-6 * mass.sum())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_linear_bins_hold_all_but_the_zeros(name: str) -> None:
    values = CONTINUOUS[name]
    magnitudes = distribution_of(values).magnitudes()
    counts = linear_bins(magnitudes, magnitudes.amax, BINS)
    assert (counts >= 0).all()
    assert counts.sum() == pytest.approx(np.count_nonzero(values), rel=1e-9)


@BOTH
@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "student", "outliers", "relu", "swish"])
def test_continuous_tensors_are_really_searched(scheme: Scheme, name: str) -> None:
    distribution = distribution_of(CONTINUOUS[name])
    chosen = Entropy().choose(distribution, scheme)
    assert chosen.candidates == BINS - LEVELS + 1
    if chosen.fallback is None:
        whole = sqnr_db(distribution, distribution.minimum, distribution.maximum, scheme)
        assert sqnr_db(distribution, chosen.low, chosen.high, scheme) >= whole - WORST_LOSS_DB


def test_a_thin_tail_is_clipped() -> None:
    chosen = Entropy().choose(distribution_of(CONTINUOUS["laplace"]), SCHEMES["int8-symmetric"])
    amax = float(np.abs(CONTINUOUS["laplace"]).max())
    assert chosen.fallback is None
    assert 0.4 * amax < chosen.high < 0.99 * amax


@BOTH
@pytest.mark.parametrize("name", sorted(set(ODD) - {"spike"}))
def test_tensors_without_meaning_say_so(scheme: Scheme, name: str) -> None:
    distribution = distribution_of(ODD[name])
    chosen = Entropy().choose(distribution, scheme)
    assert chosen.fallback is not None
    assert "KL has no meaning" in chosen.fallback
    whole = (
        (-distribution.amax, distribution.amax) if scheme.symmetric else (distribution.minimum, distribution.maximum)
    )
    assert (chosen.low, chosen.high) == whole


def test_a_spiked_tensor_keeps_its_range() -> None:
    """Half the values on one number, as a constant image background gives: KL would flee to the smallest threshold."""
    rng = np.random.default_rng(5)
    values = np.concatenate([np.full(20_000, 0.07), np.abs(rng.standard_normal(20_000))])
    distribution = distribution_of(values)
    chosen = Entropy().choose(distribution, SCHEMES["int8-symmetric"])
    assert chosen.fallback is not None
    assert chosen.fallback.startswith("values are spiked")
    assert chosen.high == distribution.amax
    assert chosen.candidates > 1


def test_zeros_do_not_move_the_threshold() -> None:
    values = CONTINUOUS["laplace"]
    padded = np.append(values, np.zeros(3 * values.size, np.float32))
    scheme = SCHEMES["int8-symmetric"]
    assert Entropy().choose(distribution_of(padded), scheme) == Entropy().choose(distribution_of(values), scheme)


@BOTH
def test_the_remembered_search_belongs_to_its_distribution(scheme: Scheme) -> None:
    first, second = distribution_of(CONTINUOUS["laplace"]), distribution_of(CONTINUOUS["laplace"] * np.float32(3))
    method = Entropy()
    assert method.choose(second, scheme).high == pytest.approx(3 * method.choose(first, scheme).high, rel=0.02)
