"""Tensors of every shape of distribution, and the float64 computations that the calibrators are measured by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators import Distribution, Histogram, MethodRange, Scheme, TensorEntry, TensorRange, parameters
from quantlab.calibrators.table import CalibrationTable, Provenance
from quantlab.degradation import Degradation, DegradationCode

Floats = NDArray[np.float32]


def histogram_of(values: object) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def distribution_of(values: object) -> Distribution:
    return histogram_of(values).distribution()


def _continuous(n: int = 40_000) -> dict[str, Floats]:
    rng = np.random.default_rng(20)
    normal = rng.standard_normal(n)
    outliers = normal.copy()
    outliers[:40] *= 30
    arrays = {
        "normal": normal,
        "laplace": rng.laplace(size=n),
        "uniform": rng.uniform(-1, 1, n),
        "student": rng.standard_t(3, n),
        "outliers": outliers,
        "relu": np.maximum(normal, 0),
        "sparse-relu": np.maximum(rng.standard_normal(n) - 1.5, 0),
        "shifted": normal + 10,
        "negative": -np.abs(normal) - 0.5,
        "two-peaks": np.where(rng.random(n) < 0.5, normal * 0.1 - 3, normal * 0.1 + 2),
        "zeros-and-far": np.where(rng.random(n) < 0.9, 0, rng.uniform(1, 2, n)),
        "swish": normal * 3 / (1 + np.exp(-normal * 3)),
        "small": normal * 1e-20,
        "large": normal * 1e20,
    }
    return {name: values.astype(np.float32) for name, values in arrays.items()}


CONTINUOUS = _continuous()
"""40,000 values each, seeded; some with exact zeros among them."""

ODD: dict[str, Floats] = {
    name: np.array(values, np.float32)
    for name, values in {
        "zeros": [0.0] * 50,
        "negative zeros": [-0.0] * 50,
        "constant": [3.25] * 50,
        "negative constant": [-3.25] * 50,
        "single": [7.0],
        "two values": [-1.0, 2.0] * 20_000,
        "sixteen levels": [float(i % 16) for i in range(40_000)],
        "spike": [0.5] * 40_000 + [float(i) / 100 for i in range(100)],
        "largest": [float(np.finfo(np.float32).max), -float(np.finfo(np.float32).max), 1.0],
        "subnormal": [1e-42, -2e-42, 1e-40],
        "least": [1.4e-45],
        "subnormals and zero": [0.0, 1.4e-45, -1.4e-45],
        "wide": [10.0**i for i in range(-38, 39)],
    }.items()
}
"""Tensors on which methods have nothing to go by."""


def true_mse(values: Floats, low: float, high: float, scheme: Scheme) -> float:
    """Mean squared error of quantizing ``values`` themselves, in float64."""
    chosen = parameters(low, high, scheme)
    x = values.astype(np.float64)
    codes = np.clip(np.rint(x / chosen.scale) + chosen.zero_point, scheme.qmin, scheme.qmax)
    return float(np.mean((x - (codes - chosen.zero_point) * chosen.scale) ** 2))


def tensor_range(low: float = -1.0, high: float = 1.0, **values: object) -> TensorRange:
    fields = {"clipped_fraction": 0.0, "sqnr_db": 30.0, "candidates": 1, "fallback": None} | values
    return TensorRange(low, high, **fields)  # type: ignore[arg-type]


def entry(name: str = "x", chosen: TensorRange | None = None, **values: object) -> TensorEntry:
    found = chosen or tensor_range()
    by_method = dict.fromkeys(("minmax", "percentile", "entropy", "mse"), found)
    fields = {"minimum": -1.0, "maximum": 1.0, "count": 100, "non_finite": 0, "zero_fraction": 0.0, "kind": ""} | values
    return TensorEntry(name, ranges={"int8-symmetric": by_method, "uint8-affine": by_method}, **fields)  # type: ignore[arg-type]


def table(*entries: TensorEntry, method: str = "mse") -> CalibrationTable:
    provenance = Provenance(
        "0.1.0", "observed", "model.onnx", "a" * 64, "b" * 64, {"x": (1, 3)}, None, "", ("d" * 64,), 99.99
    )
    degradation = Degradation(DegradationCode.METHOD_FALLBACK, "min-max was used", 1, ("x",))
    return CalibrationTable(method, 12, entries or (entry(),), provenance, (degradation,))


__all__ = ["CONTINUOUS", "ODD", "MethodRange", "distribution_of", "entry", "histogram_of", "table", "tensor_range"]
