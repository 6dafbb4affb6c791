"""Degradations: whatever made a result worth less than it looks, counted and never silent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class DegradationCode(StrEnum):
    """Stable names of everything that quantlab does on its own and a release gate must know of."""

    ASSUMED_PREPROCESS = "assumed-preprocess"
    """No preprocessing was given or found in the model; one was assumed."""
    UNREADABLE_SAMPLES = "unreadable-samples"
    """Samples that could not be read were left out."""
    LOSSY_DECODE = "lossy-decode"
    """Images lost something in decoding: alpha, CMYK, more than 8 bits, further frames."""
    DUPLICATE_SAMPLES = "duplicate-samples"
    """Samples with the same content were counted more than once."""
    OVERLAP = "calibration-evaluation-overlap"
    """The same content is in the calibration and in the evaluation data."""
    UNLABELLED_SAMPLES = "unlabelled-samples"
    """Samples without a label in a labelled set were left out of accuracy."""
    ASSUMED_LABELS = "assumed-labels"
    """Class numbers came from sorted names that are fewer than the model's classes."""
    RANDOM_DATA = "random-data"
    """Random numbers stood in for data."""
    PADDED_BATCH = "padded-batch"
    """A model of fixed batch size was fed repeated samples to fill the last batch."""
    NOT_SIMPLIFIED = "not-simplified"
    """The simplifier failed or changed the results; the model was used as it was."""
    NON_FINITE_VALUES = "non-finite-values"
    """NaN or infinite values were met and left out of ranges or metrics."""
    ABSENT_TENSORS = "absent-tensors"
    """Tensors had no values in some samples; their ranges come from the others."""
    METHOD_FALLBACK = "method-fallback"
    """The range method has no meaning for these tensors; another was used."""
    UNVERIFIED_CACHE = "unverified-cache"
    """Ranges came from a calibration cache that nothing says how it was made."""
    CACHE_REJECTED = "cache-rejected"
    """TensorRT did not take the calibration cache that it was given, and calibrated on the data instead."""
    DROPPED_SAMPLES = "dropped-samples"
    """Samples that do not fill a batch were left out of TensorRT's calibration."""
    UNMATCHED_RANGES = "unmatched-ranges"
    """Imported ranges and the tensors of the model are not the same ones."""
    NOT_QUANTIZED = "not-quantized"
    """Layers that could be quantized stayed in floating point."""
    PRECISION_NOT_PROVED = "precision-not-proved"
    """The proved precision differs from the requested one."""
    BATCH_DISAGREES = "batch-disagrees"
    """An engine gives other results for samples in a batch than one by one."""
    SATURATED_WEIGHTS = "saturated-weights"
    """Weights beyond the range of the number format were clipped."""
    OVERFLOW_NOT_MEASURED = "overflow-not-measured"
    """Tensors became FP16 though nothing says whether their values fit."""
    ENGINE_FAILED = "engine-failed"
    """An engine failed in the middle of a comparison; it was left out, and the others' results were kept."""
    REFERENCE_SCORES_NOTHING = "reference-scores-nothing"
    """The reference is never right by the task's first figure, so that nothing can be lost."""
    RECOVERY_NOT_RUN = "recovery-not-run"
    """There were too few samples to judge a step of recovery by; none was run."""
    RECOVERY_UNUSED = "recovery-unused"
    """The model was recovered, but this variant was built without that."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """One counted degradation.

    Attributes:
        code: Stable name, used by policies to allow it.
        message: One sentence for people.
        count: How many samples, tensors or layers are concerned; at least 1.
        subjects: Names of some of them, at most ``MAX_SUBJECTS``.
    """

    code: DegradationCode
    message: str
    count: int = 1
    subjects: tuple[str, ...] = ()

    MAX_SUBJECTS = 10  # not annotated: a constant, not a field

    @classmethod
    def of(cls, code: DegradationCode, message: str, subjects: Iterable[str]) -> Degradation:
        """Make a degradation that counts ``subjects`` and keeps the first few names."""
        names = list(subjects)
        return cls(code, message, len(names), tuple(names[: cls.MAX_SUBJECTS]))

    def __str__(self) -> str:
        names = ", ".join(self.subjects[:3])
        more = f" ({names}{', ...' if self.count > 3 else ''})" if names else ""
        return f"{self.code} x{self.count}: {self.message}{more}"


def merge_degradations(degradations: Iterable[Degradation]) -> tuple[Degradation, ...]:
    """Drop repeated entries (same code, message and subjects) and sort by code; counts are kept as they are."""
    unique = {(d.code, d.message, d.subjects): d for d in degradations}
    return tuple(unique[key] for key in sorted(unique))
