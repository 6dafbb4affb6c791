"""Second-order rounding: the quadratic form falls, as far as exhaustive search where that is possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.recovery.moments import Moments, Sums
from quantlab.recovery.rounding import channel_scales, damped, least_squares, output_error, round_second_order


def _problem(seed: int, groups: int, outputs: int, inputs: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs) + 0.5
    x = rng.standard_normal((groups, rows, inputs)) @ mixing
    hessian = np.swapaxes(x, 1, 2) @ x / rows
    return rng.standard_normal((groups, outputs, inputs)), hessian


@pytest.mark.parametrize(("groups", "inputs"), [(1, 40), (1, 150), (6, 9)])
def test_beats_nearest_codes(groups: int, inputs: int) -> None:
    weight, hessian = _problem(1, groups, 8, inputs, 400)
    scales = channel_scales(weight) * 8.0  # coarse, so that rounding matters
    codes = round_second_order(weight, scales, damped(hessian, 1e-4))
    nearest = np.clip(np.rint(weight / scales[:, :, None]), -127, 127)
    ours = output_error(weight, codes * scales[:, :, None], hessian).sum()
    theirs = output_error(weight, nearest * scales[:, :, None], hessian).sum()
    assert codes.dtype == np.int8
    assert ours < 0.5 * theirs


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_is_near_the_best_codes(seed: int) -> None:
    weight, hessian = _problem(seed, 1, 1, 4, 50)
    scales = np.array([[np.abs(weight).max() / 3.0]])
    hessian = damped(hessian, 1e-3)
    found = output_error(weight, round_second_order(weight, scales, hessian) * scales[:, :, None], hessian).sum()
    nearest = output_error(weight, np.rint(weight / scales[:, :, None]) * scales[:, :, None], hessian).sum()
    every = np.array(list(itertools.product(range(-9, 10), repeat=4)), float) * scales[0, 0] - weight[0]
    best = np.einsum("rk,kl,rl->r", every, hessian[0], every).min()
    assert best - 1e-12 <= found <= nearest + 1e-12


def test_no_single_code_can_be_improved() -> None:
    weight, hessian = _problem(5, 2, 3, 12, 60)
    scales = channel_scales(weight) * 20.0
    hessian = damped(hessian, 1e-3)
    codes = round_second_order(weight, scales, hessian).astype(float)
    least = output_error(weight, codes * scales[:, :, None], hessian)
    for column, step in itertools.product(range(12), (-1.0, 1.0)):
        other = codes.copy()
        other[:, :, column] += step
        assert (output_error(weight, other * scales[:, :, None], hessian) >= least - 1e-9).all()


def test_zeros_and_missing_ranks() -> None:
    weight = np.zeros((1, 3, 5))
    weight[0, 0] = [1.0, -2.0, 0.5, 0.25, 2.0]
    scales = channel_scales(weight)
    assert scales[0, 1] == 1.0
    for hessian in (np.zeros((1, 5, 5)), np.ones((1, 5, 5)), np.diag([1.0, 0, 0, 0, 0])[None]):
        codes = round_second_order(weight, scales, damped(hessian, 0.01))
        assert not codes[0, 1:].any()
        assert np.abs(codes[0, 0] * scales[0, 0] - weight[0, 0]).max() <= 2.0 * scales[0, 0]


def test_codes_stay_within_int8() -> None:
    weight, hessian = _problem(9, 1, 4, 30, 40)
    codes = round_second_order(weight, channel_scales(weight) * 0.5, damped(hessian, 0.01))
    assert codes.min() >= -127
    assert codes.max() <= 127


def test_least_squares_between_given_and_fitted() -> None:
    rng = np.random.default_rng(2)
    x, wanted = rng.standard_normal((1, 500, 6)), rng.standard_normal((1, 3, 6))
    y = x @ np.swapaxes(wanted, 1, 2)
    hessian, cross = np.swapaxes(x, 1, 2) @ x / 500, np.swapaxes(y, 1, 2) @ x / 500
    given_weight = np.zeros((1, 3, 6))
    np.testing.assert_allclose(least_squares(cross, hessian, given_weight, 1e-9), wanted, atol=1e-6)
    np.testing.assert_allclose(least_squares(cross, hessian, given_weight, 1e9), given_weight, atol=1e-6)


def test_sums_equal_float64_and_do_not_lose_to_large_means() -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((2, 900, 5)) + 300.0).astype(np.float32)
    y = (rng.standard_normal((2, 900, 3)) - 500.0).astype(np.float32)
    sums = Sums()
    for number, part in enumerate(np.array_split(np.arange(900), 7)):
        sums.add(x[:, part], y[:, part], number % 2)
    found = sums.moments()
    wide, aim = x.astype(np.float64), y.astype(np.float64)
    exact = Moments(
        wide.mean(1), aim.mean(1), np.swapaxes(wide, 1, 2) @ wide / 900, np.swapaxes(aim, 1, 2) @ wide / 900,
        (aim * aim).mean(1),
    )  # fmt: skip
    np.testing.assert_allclose(found.centred().xx, exact.centred().xx, rtol=0, atol=2e-4)
    np.testing.assert_allclose(found.centred().yx, exact.centred().yx, rtol=0, atol=2e-4)
    weight, bias = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3))
    error = aim - wide @ np.swapaxes(weight, 1, 2) - bias[:, None]
    assert found.loss(weight, bias) == pytest.approx(float((error**2).mean(1).sum()), rel=1e-4)
    with pytest.raises(ValueError, match="no rows"):
        Sums().moments()


@pytest.mark.parametrize("largest", [1e30, np.inf, np.nan])
def test_values_that_products_cannot_hold_are_told_without_a_warning(largest: float) -> None:
    sums = Sums()
    assert sums.finite
    x = np.zeros((1, 4, 3), np.float32)
    x[0, 2, 1] = largest
    sums.add(x, np.ones((1, 4, 2), np.float32), 0)
    assert not sums.finite
    sums.forget()
    with pytest.raises(ValueError, match="no rows"):
        sums.moments()


def test_means_need_no_products() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((3, 50, 4)).astype(np.float32), rng.standard_normal((3, 50, 2)).astype(np.float32)
    sums = Sums(second=False)
    sums.add(x[:, :20].copy(), y[:, :20].copy(), 0)
    sums.add(x[:, 20:].copy(), y[:, 20:].copy(), 1)
    for found, expected in zip(sums.means(), (x, y), strict=True):
        np.testing.assert_allclose(found, expected.mean(1, dtype=np.float64), atol=1e-6)
