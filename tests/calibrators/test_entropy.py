"""The entropy method against a loop that follows the published algorithm line by line."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from calibrator_data import CONTINUOUS, ODD, distribution_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantlab.calibrators import SCHEMES, Entropy, Scheme, sqnr_db
from quantlab.calibrators.entropy import (
    BINS,
    LEVELS,
    ONE_SIDED_LEVELS,
    WORST_LOSS_DB,
    bin_width,
    kl_divergences,
    kl_threshold,
)

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
            bins = range(-(-level * kept // levels), -(-(level + 1) * kept // levels))
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


# Counts of whole values: below 1, beside counts of a million, the sums from the front lose more than 1e-9 of them.
COUNTS = st.one_of(
    hnp.arrays(np.float64, st.integers(8, 60), elements=st.integers(0, 5).map(float)),
    hnp.arrays(np.float64, st.integers(8, 60), elements=st.floats(0, 1e6).map(lambda x: x if x >= 1.0 else 0.0)),
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


def test_a_full_size_one_sided_search() -> None:
    counts = np.floor(np.abs(np.random.default_rng(4).standard_normal(3001)) * np.linspace(60, 0.7, 3001))
    got = kl_divergences(counts, ONE_SIDED_LEVELS)
    assert len(got) == 3001 - ONE_SIDED_LEVELS + 1
    for kept in (256, 257, 511, 512, 513, 2999, 3001):
        expected = published(counts.tolist(), ONE_SIDED_LEVELS, only=kept)[0]
        assert got[kept - ONE_SIDED_LEVELS] == pytest.approx(expected, rel=1e-9)


def reference(values: NDArray[np.float32], levels: int) -> tuple[float, int]:
    """The threshold in bins, and their number, from the values themselves in float64: a loop over candidates."""
    magnitudes = np.abs(values[values != 0].astype(np.float64))
    width = 2.0 ** np.floor(np.log2(magnitudes.max())) / BINS
    bins = int(magnitudes.max() / width) + 1
    counts = np.histogram(magnitudes, np.arange(bins + 1) * width)[0].astype(np.float64)
    best, best_kept = math.inf, bins
    for kept in range(levels, bins + 1):
        borders = -(-np.arange(levels + 1) * kept // levels)
        filled = np.add.reduceat((counts[:kept] > 0).astype(np.float64), borders[:-1])
        means = np.add.reduceat(counts[:kept], borders[:-1]) / np.maximum(filled, 1)
        q = np.repeat(means, np.diff(borders)) * (counts[:kept] > 0)
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        held = p > 0
        if (q[held] <= 0).any():
            continue
        divergence = float(np.sum(p[held] / p.sum() * np.log(p[held] / p.sum() * q.sum() / q[held])))
        if divergence <= best + 1e-12:
            best, best_kept = min(divergence, best), kept
    return min((best_kept + 0.5), magnitudes.max() / width), bins


@pytest.mark.parametrize("levels", [LEVELS, ONE_SIDED_LEVELS])
@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "student", "shifted", "relu", "swish", "small"])
def test_the_threshold_is_that_of_the_values(name: str, levels: int) -> None:
    """Histogram and prefix sums lose nothing: the bins hold exactly what the values give, in any order of adding."""
    expected, bins = reference(CONTINUOUS[name], levels)
    distribution = distribution_of(CONTINUOUS[name])
    found = kl_threshold(distribution, levels)
    assert found.candidates == bins - levels + 1
    assert found.threshold / bin_width(distribution.amax) == pytest.approx(expected, abs=1e-6)


def test_fewer_values_than_bins() -> None:
    chosen = Entropy().choose(distribution_of(np.linspace(-1, 1, 2000)), SCHEMES["int8-symmetric"])
    assert (chosen.fallback, chosen.high) == ("sparse: 2000 values other than zero, fewer than the 2049 bins", 1.0)


def test_few_bins_with_many_values() -> None:
    rng = np.random.default_rng(1)
    values = np.append(rng.standard_normal(30_000) * 0.001, 1.0)
    chosen = Entropy().choose(distribution_of(values), SCHEMES["int8-symmetric"])
    assert chosen.fallback is not None
    assert chosen.fallback.startswith("sparse: only ")
    assert chosen.fallback.endswith("of 2049 bins occupied, fewer than 128 levels")
    assert chosen.high == 1.0


@BOTH
@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "student", "outliers", "relu", "swish"])
def test_continuous_tensors_are_really_searched(scheme: Scheme, name: str) -> None:
    distribution = distribution_of(CONTINUOUS[name])
    chosen = Entropy().choose(distribution, scheme)
    assert BINS - ONE_SIDED_LEVELS < chosen.candidates <= 2 * BINS - LEVELS + 1
    if chosen.fallback is None:
        whole = sqnr_db(distribution, distribution.minimum, distribution.maximum, scheme)
        assert sqnr_db(distribution, chosen.low, chosen.high, scheme) >= whole - WORST_LOSS_DB


def test_a_thin_tail_is_clipped() -> None:
    chosen = Entropy().choose(distribution_of(CONTINUOUS["laplace"]), SCHEMES["int8-symmetric"])
    amax = float(np.abs(CONTINUOUS["laplace"]).max())
    assert chosen.fallback is None
    assert 0.4 * amax < chosen.high < 0.99 * amax


@BOTH
@pytest.mark.parametrize("name", sorted(ODD))
def test_tensors_without_meaning_say_so(scheme: Scheme, name: str) -> None:
    distribution = distribution_of(ODD[name])
    chosen = Entropy().choose(distribution, scheme)
    assert chosen.fallback is not None
    assert chosen.fallback.startswith(("constant", "discrete"))
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
    assert "dB against min-max: the values are spiked" in chosen.fallback
    assert chosen.high == distribution.amax
    assert chosen.candidates > 1


def test_zeros_do_not_move_the_threshold() -> None:
    values = CONTINUOUS["laplace"]
    padded = np.append(values, np.zeros(3 * values.size, np.float32))
    scheme = SCHEMES["int8-symmetric"]
    assert Entropy().choose(distribution_of(padded), scheme) == Entropy().choose(distribution_of(values), scheme)


def test_a_one_sided_tensor_has_all_levels_of_an_affine_scheme() -> None:
    """Twice the levels are half the divergence or less at any width, so the threshold differs."""
    distribution = distribution_of(CONTINUOUS["relu"])
    symmetric, affine = (Entropy().choose(distribution, scheme) for scheme in SCHEMES.values())
    assert symmetric.candidates - affine.candidates == ONE_SIDED_LEVELS - LEVELS
    assert affine.high == kl_threshold(distribution, ONE_SIDED_LEVELS).threshold


@BOTH
def test_the_remembered_search_belongs_to_its_distribution(scheme: Scheme) -> None:
    first, second = distribution_of(CONTINUOUS["laplace"]), distribution_of(CONTINUOUS["laplace"] * np.float32(3))
    method = Entropy()
    assert method.choose(second, scheme).high == pytest.approx(3 * method.choose(first, scheme).high, rel=0.02)
