"""The verdict of a gate: plain records, saved as ``gate.json``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quantlab.documents import dump_json, read_json
from quantlab.errors import DataError, ExitCode
from quantlab.gate.metrics import Claim
from quantlab.gate.policy import Level, OnInconclusive
from quantlab.records import from_plain, to_plain
from quantlab.statistics.interval import Interval

VERDICT_SCHEMA = "quantlab.gate/1"


class Outcome(StrEnum):
    """Outcome of one check, or of a gate."""

    PASS = "PASS"
    """Shown to be inside the margin."""
    FAIL = "FAIL"
    """Shown to be beyond the margin."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Neither could be shown with these samples."""
    ERROR = "ERROR"
    """Could not be judged: something is missing, damaged or meaningless."""
    SKIPPED = "SKIPPED"
    """Does not apply to this candidate."""
    WAIVED = "WAIVED"
    """Did not pass, and a waiver that still holds accepts that."""


WORST_FIRST = (Outcome.ERROR, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.WAIVED, Outcome.SKIPPED, Outcome.PASS)
"""Order of reports."""

_DECIDING = (Outcome.ERROR, Outcome.FAIL, Outcome.INCONCLUSIVE)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of one check for one candidate.

    Attributes:
        id: Id of the policy's check, or ``guard.<name>``, ``degradation.<code>``, ``waiver.<check>``.
        candidate: Variant; None where the whole comparison is meant.
        metric: Metric of the check, or what the guard looks at.
        outcome: The outcome.
        level: What it does to the verdict.
        reason: One sentence for people: what was found and what it was compared with.
        claim: What is claimed; None for guards.
        unit: Unit of the four numbers that follow, such as ``pp``, ``%``, ``dB`` or ``x``.
        estimate: The value as measured; for claims with a margin, the loss (positive is worse).
        bound: The one-sided confidence bound that decides; None for claims without statistics.
        interval: Two-sided interval of both one-sided bounds.
        limit: The margin or limit that estimate or bound was compared with.
        n: Samples (latency: calls) behind it.
        needed: Samples or calls that would probably settle an INCONCLUSIVE, if any number would.
        next_step: What to do about it; empty if nothing.
        details: Further facts for information, one sentence each.
        waiver: Reason of the waiver, for WAIVED.
    """

    id: str
    candidate: str | None
    metric: str
    outcome: Outcome
    level: Level
    reason: str
    claim: Claim | None = None
    unit: str = ""
    estimate: float | None = None
    bound: float | None = None
    interval: Interval | None = None
    limit: float | None = None
    n: int | None = None
    needed: int | None = None
    next_step: str = ""
    details: tuple[str, ...] = ()
    waiver: str | None = None

    @property
    def decides(self) -> bool:
        """Whether the verdict depends on it."""
        return self.level is Level.ERROR and self.outcome in _DECIDING

    @property
    def is_passed_guard(self) -> bool:
        """Whether it is a guard that passed, of which there is nothing more to say (allowed degradations are not)."""
        return self.outcome is Outcome.PASS and self.id.startswith("guard.")


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """ERROR before FAIL before INCONCLUSIVE; PASS if there is none of them."""
    found = set(outcomes)
    return next((outcome for outcome in _DECIDING if outcome in found), Outcome.PASS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of a comparison.

    Attributes:
        outcome: PASS, FAIL, INCONCLUSIVE or ERROR: the worst of the checks of level ``error``.
        checks: Guards first, then the policy's checks in its order.
        policy: Name of the policy.
        policy_sha256: Hash of what the policy says.
        on_inconclusive: What the policy makes of INCONCLUSIVE.
        alpha: One-sided error probability of the statistical claims.
        evaluated_on: Day that waivers were judged by.
        comparison_sha256: Hash of the comparison's document, as ``sha256sum comparison.json`` gives it.
        model: File name of the source model.
        model_sha256: Hash of the source model.
        data_sha256: Digest of the evaluation manifest.
        n_samples: Samples compared.
        reference: Name of the reference variant.
        engines: Hash of the engine file by name of the variant: the reference and every candidate judged.
    """

    outcome: Outcome
    checks: tuple[CheckResult, ...]
    policy: str
    policy_sha256: str
    on_inconclusive: OnInconclusive
    alpha: float
    evaluated_on: dt.date
    comparison_sha256: str
    model: str
    model_sha256: str
    data_sha256: str
    n_samples: int
    reference: str
    engines: Mapping[str, str]

    @property
    def exit_code(self) -> ExitCode:
        """0 for PASS, 1 for FAIL, 3 for INCONCLUSIVE (0 if the policy only warns), 5 for ERROR."""
        if self.outcome is Outcome.INCONCLUSIVE and self.on_inconclusive is OnInconclusive.WARN:
            return ExitCode.OK
        codes = {
            Outcome.PASS: ExitCode.OK,
            Outcome.FAIL: ExitCode.GATE_FAILED,
            Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
        }
        return codes.get(self.outcome, ExitCode.BAD_INPUT)

    def worst_first(self) -> tuple[CheckResult, ...]:
        """The checks in the order of reports: those that decide first, then by level and outcome."""
        levels = tuple(Level)
        return tuple(
            sorted(
                self.checks,
                key=lambda check: (not check.decides, WORST_FIRST.index(check.outcome), levels.index(check.level)),
            )
        )

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": VERDICT_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read ``gate.json``.

        Raises:
            DataError: If the file is missing, damaged, of another schema, or says another outcome than its checks do.
        """
        document = read_json(path, VERDICT_SCHEMA, DataError, "verdict")
        document.pop("schema")
        verdict = from_plain(cls, document, str(path), DataError)
        expected = worst(check.outcome for check in verdict.checks if check.level is Level.ERROR)
        if verdict.outcome is not expected:
            raise DataError(
                f"verdict {path} contradicts its own checks", got=verdict.outcome, expected=expected,
                hint="run quantlab gate again",
            )  # fmt: skip
        return verdict
