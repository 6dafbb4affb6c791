"""A variant: one model in one precision for one backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantlab.calibrators.table import CalibrationTable
from quantlab.degradation import Degradation, DegradationCode
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import QuantizationKind, TargetProfile
from quantlab.graph.weights import RoundedWeight
from quantlab.precision import Precision

_KINDS = {
    Precision.INT8: QuantizationKind.INT8,
    Precision.INT8_FP16: QuantizationKind.INT8,
    Precision.INT8_WEIGHTS: QuantizationKind.INT8_WEIGHTS,
    Precision.FP8: QuantizationKind.FP8,
}


RECOVERABLE = frozenset(precision for precision, kind in _KINDS.items() if kind is QuantizationKind.INT8)
"""Precisions that are built from a recovered model where there is one."""


@dataclass(frozen=True, slots=True, eq=False)
class RecoveredModel:
    """What accuracy recovery made of a prepared model: INT8 variants are built from it in that model's place.

    Attributes:
        model: The floating-point graph with new weights and biases; its `sha256` is that of the original's file.
        table: Ranges of this graph.
        rounded: Codes and scales of weights that were rounded, by initializer.
        target: Name of the Q/DQ rules that it was made for.
        method: Range method that it was made with.
        steps: Names of the steps that were kept, in order.
        sha256: Of all this: tells one recovery from another.
        degradations: Of the recovery.
        exclude: Names or patterns of the layers that it left in floating point, where they stay.
    """

    model: Model
    table: CalibrationTable
    rounded: Mapping[str, RoundedWeight]
    target: str
    method: str
    steps: tuple[str, ...]
    sha256: str
    degradations: tuple[Degradation, ...] = ()
    exclude: tuple[str, ...] = ()


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
        recovery: What recovery made of the model; used by INT8, with or without FP16, of its target and range method.
    """

    prepared: Prepared
    backend: str
    precision: Precision
    target: TargetProfile
    table: CalibrationTable | None = None
    exclude: tuple[str, ...] = ()
    existing: ExistingPolicy = ExistingPolicy.REFUSE
    recovery: RecoveredModel | None = None

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

    @property
    def recovered(self) -> RecoveredModel | None:
        """The recovery that it is built from; None where that changed nothing, or is for other variants."""
        found = self.recovery
        if found is None or not found.steps or self.method is None or self._unfit(found) is not None:
            return None
        return found

    @property
    def model(self) -> Model:
        """The floating-point model that its graph is made of, and whose external data that refers to."""
        return self.recovered.model if self.recovered is not None else self.prepared.model

    @property
    def ranges(self) -> CalibrationTable | None:
        """The table whose ranges are those of `model`."""
        return self.recovered.table if self.recovered is not None else self.table

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """What is degraded by the recovery: what it could not do, or that it cannot be used."""
        if self.recovery is None or self.table is None or self.kind is not QuantizationKind.INT8:
            return ()
        if self.recovered is not None or not self.recovery.steps:
            return self.recovery.degradations
        reason = self._unfit(self.recovery) if self.calibrated else "the pairs that the model holds are kept"
        return (recovery_unused(f"{self.backend} {self.precision}", reason),) if reason is not None else ()

    def _unfit(self, found: RecoveredModel) -> str | None:
        if found.target != self.target.name:
            return f"it was made for the target {found.target}, this is {self.target.name}"
        if found.method != self.method:
            return f"it was made with {found.method} ranges, these are {self.method}"
        return None


def recovery_unused(what: str, reason: str) -> Degradation:
    """The degradation of a variant that is built as if the model had not been recovered."""
    return Degradation(DegradationCode.RECOVERY_UNUSED, f"{what}: the recovered model was not used: {reason}")


def variant_name(
    backend: str, precision: Precision, method: str | None, n_excluded: int, recovered: RecoveredModel | None = None
) -> str:
    """``<backend>-<precision>[-<method>][-recovered][+<n>excl]``, the name used in files, tables and reports alike."""
    name = f"{backend}-{precision}"
    if method is not None:
        name += f"-{method}"
    if recovered is not None:
        name += "-recovered"
    return name + (f"+{n_excluded}excl" if n_excluded else "")
