"""The policy of a release gate: TOML to frozen records.

A policy is a file, or a preset named ``quantlab:<name>`` (see `quantlab.gate.presets`), or a file that extends either::

    schema = 1
    extends = "quantlab:default"

    [gate]
    alpha = 0.05                  # one-sided
    on_inconclusive = "block"     # block | warn
    allow = ["lossy-decode"]      # degradations that do not fail the gate

    [[check]]
    id = "accuracy.top1"
    metric = "top1"
    candidate = "int8"            # a precision, a variant's name or a pattern of names; default: all but the reference
    claim = "non-inferior"
    margin = { absolute_pp = 0.5 }   # or { relative = 0.01 }: 1 % of the reference's accuracy
    min_samples = 2000
    level = "error"               # error | warn | info

    [[waiver]]
    check = "accuracy.top1"
    candidate = "onnxruntime-int8-minmax"
    reason = "GH-118"
    expires = 2027-01-31          # the last day on which it holds
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum

from quantlab.degradation import DegradationCode
from quantlab.documents import canonical_sha256
from quantlab.gate.metrics import METRICS, Claim, Metric
from quantlab.harness.measurement import Boundary
from quantlab.records import to_plain

POLICY_SCHEMA = 1


class Level(StrEnum):
    """What a check that does not pass does to the verdict."""

    ERROR = "error"
    """It decides."""
    WARN = "warn"
    """It is reported as a warning."""
    INFO = "info"
    """It is reported."""


class OnInconclusive(StrEnum):
    """What an inconclusive verdict does to the exit code."""

    BLOCK = "block"
    """Exit code 3."""
    WARN = "warn"
    """Exit code 0; the verdict still says INCONCLUSIVE."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Largest loss against the reference; exactly one of the three is given.

    Attributes:
        absolute_pp: In percentage points.
        relative: As a fraction of the reference's figure on the same samples: 0.01 is "99 % of FP32".
        absolute: In the unit of the figure (metric ``score`` only).
    """

    absolute_pp: float | None = None
    relative: float | None = None
    absolute: float | None = None

    def in_pp(self, reference_pct: float) -> float:
        """The margin in percentage points, given the reference's accuracy in percent."""
        if self.absolute_pp is not None:
            return self.absolute_pp
        return (self.relative or 0.0) * reference_pct

    def in_unit(self, reference: float, unit: str) -> float | None:
        """The margin in the unit of a figure that the reference has; None if percentage points mean nothing there."""
        if self.absolute is not None:
            return self.absolute
        if self.absolute_pp is not None:
            return self.absolute_pp if unit == "%" else None
        return (self.relative or 0.0) * abs(reference)

    def __str__(self) -> str:
        if self.absolute is not None:
            return f"{self.absolute:g}"
        return f"{self.absolute_pp:g} pp" if self.absolute_pp is not None else f"{self.relative:g} of the reference"


@dataclass(frozen=True, slots=True)
class GateSection:
    """The ``[gate]`` table.

    Attributes:
        alpha: One-sided error probability of every statistical claim.
        on_inconclusive: What an inconclusive verdict does to the exit code.
        allow: Degradations that do not fail the gate.
    """

    alpha: float = 0.05
    on_inconclusive: OnInconclusive = OnInconclusive.BLOCK
    allow: tuple[DegradationCode, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One ``[[check]]``: it is evaluated once for each candidate that it selects.

    Attributes:
        id: Name in verdicts and waivers; unique in the policy.
        metric: What is checked.
        candidate: A precision, a variant's name, or a pattern of names with ``*``; never selects the reference.
        reference: Likewise; if given, the comparison's reference must match it.
        claim: What is claimed; None takes the metric's default.
        margin: Largest loss against the reference (top1, top5, score).
        limit: Value to reach, in the metric's unit.
        output: Name or pattern of the model outputs to look at, for metrics of outputs.
        min_samples: Fewer samples (latency: calls) than this never pass.
        figure: Name of the task's figure (score only), such as ``map``, ``miou``, ``mae``, ``top1``, ``ece``.
        slices: Column whose every slice is judged (score only), such as ``class``; None for all samples together.
        aa_noise_max: Largest deviation from 1 of the reference's latency ratio against itself (latency_ratio only).
        boundary: What is timed (latency_ratio only): ``host`` or ``device``, the execution on the GPU; default: host.
        level: What a check that does not pass does to the verdict.
    """

    id: str
    metric: Metric
    candidate: str = "*"
    reference: str | None = None
    claim: Claim | None = None
    margin: Margin | None = None
    limit: float | None = None
    output: str = "*"
    min_samples: int = 1
    aa_noise_max: float | None = None
    figure: str | None = None
    slices: str | None = None
    boundary: Boundary | None = None
    level: Level = Level.ERROR

    @property
    def effective_claim(self) -> Claim:
        """The claim, or the metric's default."""
        return self.claim or METRICS[self.metric].default_claim


@dataclass(frozen=True, slots=True)
class Waiver:
    """One ``[[waiver]]``: turns FAIL and INCONCLUSIVE of a check into WAIVED, never ERROR.

    Attributes:
        check: Id of the check or guard.
        reason: Why, for example a ticket.
        expires: Last day on which it holds; afterwards it is an error.
        candidate: As in `Check`; default: every candidate.
    """

    check: str
    reason: str
    expires: dt.date
    candidate: str = "*"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy with its presets resolved and every rule checked.

    Attributes:
        name: File name, or ``quantlab:<preset>``.
        gate: General settings.
        checks: In the order of the file, inherited ones first.
        waivers: In the order of the file, inherited ones first.
    """

    name: str
    gate: GateSection
    checks: tuple[Check, ...]
    waivers: tuple[Waiver, ...]

    @property
    def sha256(self) -> str:
        """Hash of what the policy says, presets resolved; layout, comments and name do not count."""
        return canonical_sha256(
            {"gate": to_plain(self.gate), "check": to_plain(self.checks), "waiver": to_plain(self.waivers)}
        )
