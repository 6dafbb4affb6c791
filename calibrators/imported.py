"""A calibration table from somebody else's scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version

from quantlab.calibrators.methods import IMPORTED
from quantlab.calibrators.quantize import INT8_SYMMETRIC
from quantlab.calibrators.table import CalibrationTable, Provenance, TensorEntry, TensorRange
from quantlab.degradation import Degradation

STEPS = 127.0
"""amax = 127 * scale. The product of a float32 and 127 is exact in float64, and so is the way back."""


def imported_table(
    scales: Mapping[str, float],
    source: str,
    *,
    model: str = "",
    model_sha256: str = "",
    graph_sha256: str = "",
    degradations: Iterable[Degradation] = (),
) -> CalibrationTable:
    """A table that holds one symmetric range a tensor, by the method ``imported``.

    Args:
        scales: Tensor name to scale, float32, not negative; 0 for tensors that were constant zero.
        source: Name of the file that they come from.
        model: File name of the model that they belong to, if it is known.
        model_sha256: Its hash.
        graph_sha256: Hash of its prepared graph.
        degradations: What was degraded on the way.
    """
    provenance = Provenance(
        quantlab=version("quantlab"), source=source, model=model, model_sha256=model_sha256, graph_sha256=graph_sha256,
        shapes={}, preprocess=None, preprocess_sha256="", samples=(), percentile=100.0,
    )  # fmt: skip
    entries = tuple(_entry(name, scales[name] * STEPS) for name in sorted(scales))
    return CalibrationTable(IMPORTED, 0, entries, provenance, tuple(degradations))


def _entry(name: str, amax: float) -> TensorEntry:
    chosen = TensorRange(-amax, amax, None, None, 1, None)
    return TensorEntry(name, -amax, amax, 0, 0, None, "", {INT8_SYMMETRIC.name: {IMPORTED: chosen}})
