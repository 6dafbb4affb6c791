"""A variant: one model in one precision for one backend."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.calibrators.table import CalibrationTable
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import TargetProfile
from quantlab.precision import Precision


@dataclass(frozen=True, slots=True)
class Variant:
    """What is to be built.

    Attributes:
        prepared: The prepared FP32 model.
        backend: Backend that will run it.
        precision: Requested precision.
        target: Q/DQ rules; used by quantized precisions only.
        table: Ranges; needed by quantized precisions.
        exclude: Names or patterns of layers to keep in floating point.
    """

    prepared: Prepared
    backend: str
    precision: Precision
    target: TargetProfile
    table: CalibrationTable | None = None
    exclude: tuple[str, ...] = ()

    @property
    def quantized(self) -> bool:
        """Whether the precision needs a calibration table."""
        return self.precision in (Precision.INT8, Precision.INT8_FP16, Precision.FP8)


def variant_name(backend: str, precision: Precision, method: str | None, n_excluded: int) -> str:
    """``<backend>-<precision>[-<method>][+<n>excl]``, the name used in files, tables and reports alike."""
    name = f"{backend}-{precision}"
    if method is not None:
        name += f"-{method}"
    return name + (f"+{n_excluded}excl" if n_excluded else "")
