"""What each recovery step did, measured on samples that no step learned from."""

from __future__ import annotations

from dataclasses import dataclass

from quantlab.statistics.interval import Interval


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        name: Its name in ``--recover``.
        label: Which of its proposals was the best; empty if it had but one, or none.
        kept: Whether the model goes on with it.
        before_db: SQNR at the model's outputs before it, on held-out samples; None if it proposed nothing.
        after_db: The same with its best proposal.
        change_db: Change of the SQNR, paired by sample, with its interval; None if it proposed nothing.
        seconds: Time that it took, measuring included.
        changed: Names of the layers or tensors that the best proposal changed.
        notes: What was left out and why, one sentence each; why it was dropped.
        judged_by: What the figures are of: ``both``, the quantized model, or ``activations`` quantized alone, where the
            rounding of weights, which is to follow, would hide what a step for activations gains.
    """

    name: str
    label: str
    kept: bool
    before_db: float | None
    after_db: float | None
    change_db: Interval | None
    seconds: float
    changed: tuple[str, ...]
    notes: tuple[str, ...]
    judged_by: str = "both"


@dataclass(frozen=True, slots=True)
class LayerShare:
    """A part of the noise at the model's outputs.

    Attributes:
        name: Layer or tensor.
        kind: ``weight`` or ``activation``.
        share: Share of the noise of this kind, 0 to 1.
    """

    name: str
    kind: str
    share: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where the loss comes from, before any step.

    Attributes:
        weights_db: SQNR at the model's outputs with weights alone quantized.
        activations_db: The same with activations alone.
        whole_db: The same with both.
        layers: Parts with their shares, the largest first.
    """

    weights_db: float
    activations_db: float
    whole_db: float
    layers: tuple[LayerShare, ...]


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """A whole recovery.

    Attributes:
        steps: In the order that they ran in.
        n_fit: Samples that steps learned from.
        n_check: Held-out samples that judged them.
        start_db: SQNR at the model's outputs at the start, on held-out samples.
        end_db: The same at the end.
        diagnosis: Where the loss came from; None if it was not measured.
    """

    steps: tuple[StepRecord, ...]
    n_fit: int
    n_check: int
    start_db: float
    end_db: float
    diagnosis: Diagnosis | None = None
