"""What may make a measurement other than it looks: stable codes, and a sentence for each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CautionCode(StrEnum):
    """Stable names; `docs/bench.md` says what to do about each."""

    RANDOM_INPUTS = "random-inputs"
    """Timed on random numbers; the time of some models depends on what they are fed."""
    OTHER_LOAD = "load-from-others"
    """Other processes used processors during the measurement."""
    STOLEN_TIME = "stolen-time"
    """The hypervisor gave the processors to another virtual machine during the measurement."""
    CPU_QUOTA = "quota-below-threads"
    """The control group may use fewer processors than there are threads: it is stopped in every period."""
    TOO_MANY_THREADS = "threads-above-processors"
    """More threads, or callers times threads, than processors."""
    GOVERNOR = "governor-not-performance"
    """The processors' frequency follows the load."""
    CLOCKS_CHANGED = "clocks-changed"
    """Clocks after the measurement differ by more than 2 % from those before."""
    THROTTLED = "throttled"
    """A GPU ran below the clocks asked for, by heat or power."""
    GPU_SHARED = "gpu-shared"
    """Other processes compute on the GPU."""
    MULTIPLE_STREAMS = "multiple-streams"
    """Several callers at once: latencies hold the waiting for each other."""
    ENQUEUE_BOUND = "enqueue-bound"
    """The GPU may wait for the host."""
    H2D_BOUND = "h2d-bound"
    """Copying the inputs takes as long as computing."""
    D2H_BOUND = "d2h-bound"
    """Copying the outputs takes as long as computing."""
    UNSTABLE = "unstable-compute"
    """The time of computing varies by more than 2.5 %."""
    NO_GRAPH = "no-cuda-graph"
    """An engine could not be captured as a CUDA graph; none was."""
    NO_GPU_RATIO = "no-ratio-on-gpu"
    """The reference is not timed on the GPU, so the engines that are have no ratios there."""
    UNKNOWN_ENVIRONMENT = "environment-unknown"
    """Times were read from a file that does not say where they were taken."""
    ENVIRONMENT_DIFFERS = "environment-differs"
    """A saved measurement was compared though its environment is another one."""
    EMULATED = "emulated"
    """The engine computes in another precision than its own; its time is not that of the precision."""


@dataclass(frozen=True, slots=True)
class Caution:
    """One of them.

    Attributes:
        code: Stable name.
        text: One sentence for people, without a full stop.
        subject: Engine, GPU or file that it is about; empty for the whole.
    """

    code: CautionCode
    text: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.subject + ': ' if self.subject else ''}{self.text}"
