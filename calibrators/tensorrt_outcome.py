"""What became of a calibration by TensorRT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from quantlab.calibrators.tensorrt_cache import Algorithm, CalibrationCache
from quantlab.calibrators.tensorrt_feed import Shapes
from quantlab.degradation import Degradation, DegradationCode


class RangeOrigin(StrEnum):
    """Where TensorRT took the ranges from."""

    DATA = "data"
    """It calibrated on batches."""
    CACHE = "cache"
    """It took the cache, or the table in the form of one, and asked for no batch."""


@dataclass(frozen=True, slots=True)
class CalibrationOutcome:
    """What became of a calibration.

    Attributes:
        algorithm: Of the calibrator.
        origin: Where the ranges come from.
        batches_promised: Batches that the data make; 0 without data.
        batches: Batches that TensorRT took; all promised ones, or none.
        samples: Samples in them, without repeats.
        shapes: Shape of a batch by input; empty without data.
        cache: The scales that TensorRT works with: what it wrote, or took.
        cache_sha256: Hash of the cache's bytes.
        degradations: Of the data, the cache and the calibration.
    """

    algorithm: Algorithm
    origin: RangeOrigin
    batches_promised: int
    batches: int
    samples: int
    shapes: Shapes
    cache: CalibrationCache
    cache_sha256: str
    degradations: tuple[Degradation, ...]

    def uncovered(self, tensors: Iterable[str]) -> tuple[Degradation, ...]:
        """One degradation that names the network's tensors (see `network_tensors`) without a range, or none."""
        missing = [name for name in tensors if name not in self.cache.scales]
        if not missing:
            return ()
        message = "tensors of the network have no range; TensorRT keeps their layers in floating point"
        return (Degradation.of(DegradationCode.UNMATCHED_RANGES, message, missing),)
