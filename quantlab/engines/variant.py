"""A variant: one model in one precision for one backend."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.calibrators.table import CalibrationTable
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import QuantizationKind, TargetProfile
from quantlab.precision import Precision

_KINDS = {
    Precision.INT8: QuantizationKind.INT8,
    Precision.INT8_FP16: QuantizationKind.INT8,
    Precision.INT8_WEIGHTS: QuantizationKind.INT8_WEIGHTS,
    Precision.FP8: QuantizationKind.FP8,
}


@dataclass(frozen=True, slots=True)
class Variant:
    """What is to be built.

    Attributes:
        prepared: The prepared FP32 model.
        backend: Backend that will run it.
        precision: Requested precision.
        target: Q/DQ rules; used by quantized precisions only.
        table: Ranges; needed where activations are quantized.
        exclude: Names or patterns of layers to keep in floating point.
        existing: What to do with Q/DQ pairs that the model already holds; used by quantized precisions only.
    """

    prepared: Prepared
    backend: str
    precision: Precision
    target: TargetProfile
    table: CalibrationTable | None = None
    exclude: tuple[str, ...] = ()
    existing: ExistingPolicy = ExistingPolicy.REFUSE

    @property
    def kind(self) -> QuantizationKind | None:
        """Which operands the Q/DQ writer quantizes; None if it does not write this precision.

        INT8 with FP16 around it has the pairs of INT8; what is around them is typed afterwards.
        """
        return _KINDS.get(self.precision)

    @property
    def quantized(self) -> bool:
        """Whether the Q/DQ writer makes it, by the rules of the target."""
        return self.kind is not None

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration table; never if the model is quantized already and is kept as it is."""
        kept = self.existing is ExistingPolicy.KEEP
        return self.kind is not None and self.kind is not QuantizationKind.INT8_WEIGHTS and not kept

    @property
    def method(self) -> str | None:
        """The range method that made its ranges; None if no method did: FP8 takes the exact largest magnitudes."""
        chosen = self.kind is QuantizationKind.INT8 and self.calibrated and self.table is not None
        return self.table.method if chosen and self.table is not None else None


def variant_name(backend: str, precision: Precision, method: str | None, n_excluded: int) -> str:
    """``<backend>-<precision>[-<method>][+<n>excl]``, the name used in files, tables and reports alike."""
    name = f"{backend}-{precision}"
    if method is not None:
        name += f"-{method}"
    return name + (f"+{n_excluded}excl" if n_excluded else "")
