"""The record of one timing: figures, and the raw blocks, order, seed and settings that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from quantlab.harness.measurement import Boundary, Latency
from quantlab.statistics.interval import Interval

CONTROL = "A/A control"
"""Label of the reference's second series of blocks."""


@dataclass(frozen=True, slots=True)
class LatencySettings:
    """How to measure, and for how long.

    Attributes:
        seconds: Budget for all engines together, warm-up excluded.
        warmup_ms: Least warm-up of each engine; checked for as long again.
        warmup_calls: Least calls of the warm-up.
        block_ms: Least length of a block; 1,000 times the clock's resolution where that is longer.
        min_rounds: Rounds that are made even beyond the budget; rounds come in pairs.
        max_rounds: Rounds after which it stops.
        half_width: Stop when every ratio, the control's included, is known to this share of itself either way; 0 for
            never.
        least_seconds: Time before which it does not stop for precision.
        margin: Ratios within 1 +- this are equivalent.
        noise_bound: Half-width of the control's interval above which the machine is too noisy.
        seed: Of the order and of the bootstrap.
    """

    seconds: float = 10.0
    warmup_ms: float = 200.0
    warmup_calls: int = 10
    block_ms: float = 20.0
    min_rounds: int = 6
    max_rounds: int = 5000
    half_width: float = 0.005
    least_seconds: float = 3.0
    margin: float = 0.02
    noise_bound: float = 0.05
    seed: int = 0


class Stop(StrEnum):
    """Why timing stopped."""

    PRECISION = "precision"
    TIME = "time"
    ROUNDS = "rounds"


class TimingCode(StrEnum):
    """What may make figures other than they seem; stable."""

    NOISY_MACHINE = "noisy-machine"
    NOT_STATIONARY = "not-stationary"
    CLOCK_JUMP = "clock-jump"
    FEW_BLOCKS = "few-blocks"
    LOOPED_CALLS = "looped-calls"
    OUTLIER_ASYMMETRY = "outlier-asymmetry"


@dataclass(frozen=True, slots=True)
class TimingWarning:
    """One of them.

    Attributes:
        code: Its kind.
        message: What was found, in words with numbers.
        variant: Engine that it is about; None for all.
    """

    code: TimingCode
    message: str
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How an engine was warmed up.

    Attributes:
        calls: Calls before the first block, those of the check included.
        elapsed_ms: Their time.
        extended: Whether the check had to be made again.
        stationary: Whether the last check held.
    """

    calls: int
    elapsed_ms: float
    extended: bool
    stationary: bool


@dataclass(frozen=True, slots=True)
class Variation:
    """How the ratio varies between repetitions of the whole measurement, such as fresh processes.

    Attributes:
        ratios: Ratio of each repetition.
        within: Standard error that one repetition has by itself (root mean square), as share of the ratio.
        between: Standard deviation between repetitions beyond that, as share of the ratio.
    """

    ratios: tuple[float, ...]
    within: float
    between: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Latencies by name, the control, and everything that they can be computed again from.

    Attributes:
        latencies: Summary of each engine.
        noise_floor: Interval of the ratio of the reference to itself (A/A control).
        control_ratio: That ratio.
        reference: Engine that ratios are taken to.
        boundary: What lies between start and stop of the clock.
        settings: As asked for.
        stop: Why it stopped.
        elapsed_s: From the first block to the last.
        resolution_ns: Smallest step of the clock; NaN where it is not the host's.
        labels: The engines, then `CONTROL`.
        order: By round the indices into ``labels`` in which blocks were timed; every second round is the one before it,
            reversed.
        blocks_ms: Median of each block by label, in order of the rounds.
        warm_ups: By engine.
        warnings: What may make the figures other than they seem.
        processes: The repetitions in fresh processes that this combines; empty for one measurement. ``order`` and
            ``blocks_ms`` are then empty, as each repetition has its own.
        variations: Of the ratio between the repetitions, by engine.
    """

    latencies: Mapping[str, Latency]
    noise_floor: Interval
    control_ratio: float
    reference: str
    boundary: Boundary
    settings: LatencySettings
    stop: Stop
    elapsed_s: float
    resolution_ns: float
    labels: tuple[str, ...]
    order: tuple[tuple[int, ...], ...]
    blocks_ms: Mapping[str, tuple[float, ...]]
    warm_ups: Mapping[str, WarmUp]
    warnings: tuple[TimingWarning, ...] = ()
    processes: tuple[Timings, ...] = ()
    variations: Mapping[str, Variation] = field(default_factory=dict)

    @property
    def too_noisy(self) -> bool:
        """Whether the control says that the machine is too noisy; the warning says it in words."""
        return any(warning.code is TimingCode.NOISY_MACHINE for warning in self.warnings)
