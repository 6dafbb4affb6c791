"""McNemar, Clopper-Pearson and the plans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from quantlab.errors import ConfigError, GateError
from quantlab.gate.plan import images_for_margin, images_for_proportion, plan_non_inferiority
from quantlab.statistics.mcnemar import mcnemar_p
from quantlab.statistics.proportion import proportion_lower_bound, proportion_upper_bound
from quantlab.statistics.tango import loss_upper_bound

# One-sided 95 %, true loss 0: rows are discordances in %, columns margins in pp; 80 and 90 % power.
# From (z_0.95 + z_power)^2 d / m^2, computed independently of this code.
NEEDED = {
    (1, 0.25): (9893, 13703), (1, 0.5): (2474, 3426), (1, 1): (619, 857), (1, 2): (155, 215),
    (2, 0.25): (19785, 27405), (2, 0.5): (4947, 6852), (2, 1): (1237, 1713), (2, 2): (310, 429),
    (4, 0.25): (39569, 54809), (4, 0.5): (9893, 13703), (4, 1): (2474, 3426), (4, 2): (619, 857),
    (8, 0.25): (79137, 109618), (8, 0.5): (19785, 27405), (8, 1): (4947, 6852), (8, 2): (1237, 1713),
}  # fmt: skip


def test_published_mcnemar() -> None:
    """Fagerland, Lydersen and Laake 2017, chapter 8, data of Cavo et al. 2012."""
    assert round(mcnemar_p(6, 16), 6) == 0.052479


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p(b, c) == mcnemar_p(c, b)


def test_five_flips_one_way_are_not_significant() -> None:
    assert (mcnemar_p(5, 0), mcnemar_p(6, 0)) == (0.0625, 0.03125)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(GateError, match="negative"):
        mcnemar_p(-1, 2)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.001, 0.4))
def test_clopper_pearson(split: tuple[int, int], alpha: float) -> None:
    k, n = split
    exact = binomtest(k, n).proportion_ci(1 - 2 * alpha, method="exact")
    assert proportion_lower_bound(k, n, alpha) == pytest.approx(exact.low, abs=1e-9)
    assert proportion_upper_bound(k, n, alpha) == pytest.approx(exact.high, abs=1e-9)


def test_clopper_pearson_refuses_impossible_counts() -> None:
    with pytest.raises(GateError, match="impossible"):
        proportion_lower_bound(3, 2, 0.05)
    with pytest.raises(GateError, match="alpha"):
        proportion_lower_bound(1, 2, 0.5)


@pytest.mark.parametrize(("discordance_pct", "margin_pp"), NEEDED)
def test_plan_table(discordance_pct: float, margin_pp: float) -> None:
    plan = plan_non_inferiority(margin_pp, discordance_pct)
    assert plan.images == NEEDED[discordance_pct, margin_pp]
    assert plan.powers == (0.8, 0.9)


def test_a_true_loss_of_half_the_margin_costs_four_times_the_images() -> None:
    assert images_for_margin(0.005, 0.02, true_loss=0.0025) == 19779


def test_without_discordance_the_plan_is_where_no_flip_passes() -> None:
    n = images_for_margin(0.01, 0.0)
    assert loss_upper_bound(0, 0, n, 0.05) < 0.01 <= loss_upper_bound(0, 0, n - 1, 0.05)


@pytest.mark.parametrize(("discordance", "margin", "true_loss"), [(0.02, 0.01, 0.0), (0.04, 0.02, 0.005)])
def test_the_planned_power_is_reached(discordance: float, margin: float, true_loss: float) -> None:
    """Simulated with a fixed seed: the share of PASS verdicts at the planned size is the planned power."""
    n = images_for_margin(margin, discordance, true_loss=true_loss, power=0.8)
    wins = (discordance - true_loss) / 2
    rng = np.random.default_rng(11)
    draws = rng.multinomial(n, [wins + true_loss, wins, 1 - discordance], size=3000)
    power = np.mean([loss_upper_bound(int(b), int(c), n, 0.05) < margin for b, c, _ in draws])
    assert power == pytest.approx(0.8, abs=0.035)


@pytest.mark.parametrize(
    ("margin_pp", "discordance_pct", "loss_pp", "words"),
    [
        (0, 2, 0, "margin is out of range"),
        (100, 2, 0, "margin is out of range"),
        (0.5, 0.1, 0.25, "discordance is out of range"),
        (0.5, 101, 0, "discordance is out of range"),
        (0.5, 2, 0.5, "no number of images"),
    ],
)
def test_impossible_plans(margin_pp: float, discordance_pct: float, loss_pp: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_non_inferiority(margin_pp, discordance_pct, true_loss_pp=loss_pp)


def test_plan_refuses_odd_probabilities() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        images_for_margin(0.01, 0.02, alpha=0.5)
    with pytest.raises(ConfigError, match="power"):
        images_for_margin(0.01, 0.02, power=1.0)


def test_images_for_a_proportion() -> None:
    assert images_for_proportion(0.99, 1.0) == 299  # 0.99^299 < 0.05 <= 0.99^298
    assert images_for_proportion(0.99, 0.99) is None
    assert images_for_proportion(0.99, 0.98) is None
    assert images_for_proportion(1.0, 1.0) is None


def test_the_planned_power_for_a_proportion_is_reached() -> None:
    n = images_for_proportion(0.95, 0.97)
    assert n is not None
    k = np.random.default_rng(3).binomial(n, 0.97, size=2000)
    power = np.mean([proportion_lower_bound(int(value), n, 0.05) >= 0.95 for value in k])
    assert power == pytest.approx(0.8, abs=0.06)
