"""What every range method promises, whatever the tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from calibrator_data import CONTINUOUS, ODD, distribution_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantlab.calibrators import (
    DEFAULT_METHOD,
    METHOD_NAMES,
    SCHEMES,
    Entropy,
    MeanSquaredError,
    MethodRange,
    MinMax,
    Percentile,
    RangeMethod,
    Scheme,
    check_method,
    parameters,
    range_methods,
)
from quantlab.errors import ConfigError

BOTH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
TENSORS = {**CONTINUOUS, **ODD}


class RangeMethodSuite(ABC):
    """The contract of `RangeMethod`; one subclass for each method."""

    @abstractmethod
    def method(self) -> RangeMethod:
        """A new one."""

    def _checked(self, values: object, scheme: Scheme) -> MethodRange:
        distribution = distribution_of(values)
        chosen = self.method().choose(distribution, scheme)
        assert np.isfinite([chosen.low, chosen.high]).all()
        assert chosen.low <= chosen.high
        if scheme.symmetric:
            assert chosen.low == -chosen.high
            assert chosen.high <= distribution.amax
        else:
            assert chosen.low >= distribution.minimum
            assert chosen.high <= distribution.maximum
        assert chosen.candidates > 1 or not self.method().searches or chosen.fallback is not None
        assert chosen.fallback is None or chosen.fallback.strip()
        parameters(chosen.low, chosen.high, scheme)
        return chosen

    def test_is_known_by_its_name(self) -> None:
        assert self.method().name in METHOD_NAMES
        assert type(self.method()) in map(type, range_methods())

    @BOTH
    @pytest.mark.parametrize("name", TENSORS)
    def test_range_lies_within_the_extremes(self, scheme: Scheme, name: str) -> None:
        self._checked(TENSORS[name], scheme)

    @BOTH
    @settings(max_examples=25, deadline=None)
    @given(
        values=hnp.arrays(
            np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
        )
    )
    def test_any_values(self, scheme: Scheme, values: NDArray[np.float32]) -> None:
        self._checked(values, scheme)

    @BOTH
    @pytest.mark.parametrize("name", ["laplace", "sparse-relu", "outliers", "shifted", "sixteen levels"])
    def test_deterministic(self, scheme: Scheme, name: str) -> None:
        assert self._checked(TENSORS[name], scheme) == self._checked(TENSORS[name][::-1], scheme)

    @BOTH
    @pytest.mark.parametrize("name", ["laplace", "outliers", "two-peaks"])
    def test_a_power_of_two_scales_the_range(self, scheme: Scheme, name: str) -> None:
        """Buckets are relative, so units do not matter."""
        once, scaled = self._checked(TENSORS[name], scheme), self._checked(TENSORS[name] * np.float32(1024), scheme)
        assert (scaled.low, scaled.high) == pytest.approx((1024 * once.low, 1024 * once.high), rel=1e-6)

    @BOTH
    @pytest.mark.parametrize("value", [0.0, 1.5, -1.5, 1e-30, -3e38])
    def test_constants_and_single_values_are_kept(self, scheme: Scheme, value: float) -> None:
        value = float(np.float32(value))
        for count in (1, 30_000):
            chosen = self._checked([value] * count, scheme)
            kept = (-abs(value), abs(value)) if scheme.symmetric else (value, value)
            assert (chosen.low, chosen.high) == pytest.approx(kept, rel=1e-9)

    @BOTH
    def test_one_sided(self, scheme: Scheme) -> None:
        positive = self._checked(CONTINUOUS["relu"], scheme)
        negative = self._checked(-CONTINUOUS["relu"], scheme)
        assert positive.high > 1.0
        assert negative.low < -1.0
        if not scheme.symmetric:
            assert positive.low >= 0.0
            assert negative.high <= 0.0
        assert -negative.low == pytest.approx(positive.high, rel=0.05)  # int8 has one more code below zero


class TestMinMax(RangeMethodSuite):
    def method(self) -> RangeMethod:
        return MinMax()


class TestPercentile(RangeMethodSuite):
    def method(self) -> RangeMethod:
        return Percentile(99.9)


class TestEntropy(RangeMethodSuite):
    def method(self) -> RangeMethod:
        return Entropy()


class TestMeanSquaredError(RangeMethodSuite):
    def method(self) -> RangeMethod:
        return MeanSquaredError()


def test_the_suite_covers_every_method() -> None:
    tested = {suite().method().name for suite in RangeMethodSuite.__subclasses__()}
    assert tested == set(METHOD_NAMES) == {method.name for method in range_methods()}
    assert DEFAULT_METHOD in METHOD_NAMES


def test_check_method() -> None:
    assert [check_method(name) for name in METHOD_NAMES] == list(METHOD_NAMES)
    with pytest.raises(ConfigError, match="no range method 'entrophy'") as caught:
        check_method("entrophy")
    assert "did you mean 'entropy'" in str(caught.value)


@pytest.mark.parametrize("percentile", [50.0, 101.0, float("nan")])
def test_a_wrong_percentile_is_a_configuration_error(percentile: float) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        range_methods(percentile)
