"""The result of comparing variants with a reference: plain records, saved as ``comparison.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantlab.degradation import Degradation
from quantlab.documents import dump_json, read_json
from quantlab.errors import DataError
from quantlab.harness.measurement import Latency
from quantlab.harness.tasks.protocol import CountChange
from quantlab.harness.timings import TimingWarning
from quantlab.harness.trtexec import DeviceFigures
from quantlab.precision import Execution, Precision
from quantlab.records import from_plain, to_plain
from quantlab.statistics.interval import Interval

COMPARISON_SCHEMA = "quantlab.comparison/1"


@dataclass(frozen=True, slots=True)
class OutputDrift:
    """Numerical drift of one model output against the reference, over all samples.

    Attributes:
        output: Name of the output.
        sqnr_db: 10 log10(sum ref^2 / sum (ref - out)^2), in dB; inf if identical.
        cosine: Mean over samples of the cosine similarity.
        max_abs_error: Largest absolute difference.
        kl_nats: Mean over samples of KL(softmax(ref) || softmax(out)); None for outputs that are not logits.
        non_finite: Values of this variant's output that are NaN or infinite.
        constant: Whether every sample gave the same output.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs_error: float
    kl_nats: float | None
    non_finite: int
    constant: bool


@dataclass(frozen=True, slots=True)
class Classification:
    """Top-k decisions of a variant, paired with the reference on the same samples.

    Attributes:
        n: Samples compared.
        agreement: Samples on which variant and reference give the same top-1 class.
        n_labelled: Samples with a label; the counts below are over these.
        top1: Variant right.
        top5: Label among the variant's five best; None with fewer than six classes.
        reference_top1: Reference right.
        flips_to_wrong: Reference right and variant wrong (``b`` of the paired table).
        flips_to_right: Reference wrong and variant right (``c``).
    """

    n: int
    agreement: int
    n_labelled: int
    top1: int
    top5: int | None
    reference_top1: int
    flips_to_wrong: int
    flips_to_right: int

    @property
    def delta_pp(self) -> float:
        """Change of top-1 accuracy against the reference in percentage points; negative is a loss."""
        if self.n_labelled == 0:
            return float("nan")
        return 100.0 * (self.flips_to_right - self.flips_to_wrong) / self.n_labelled


@dataclass(frozen=True, slots=True)
class Slice:
    """Samples that have a value in common.

    Attributes:
        column: ``class``, or a column of the file that ``--slices`` names.
        value: The value, for classes their name where it is known.
    """

    column: str
    value: str


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of the task, of a variant and of the reference on the same samples.

    Attributes:
        figure: Such as ``top1``, ``map``, ``miou``, ``mae``, or the name of a user's own metric.
        unit: ``%`` for shares, else the unit of the values; empty for pure numbers.
        higher_is_better: Direction.
        value: Of the variant; NaN where it is undefined.
        reference: Of the reference.
        difference: ``value - reference``, in the unit (percentage points for ``%``).
        interval: Of the difference; with ``against_reference``, of the value. None where there are too few samples, and
            for the reference.
        method: How the interval was made, or why there is none, in words; empty for the reference.
        n: Samples that it is over.
        slice: Samples that it is over; None for all.
        against_reference: Whether the figure compares with the reference's outputs itself, as an SQNR does;
            ``reference`` is then that of no drift at all.
    """

    figure: str
    unit: str
    higher_is_better: bool
    value: float
    reference: float
    difference: float
    interval: Interval | None
    method: str
    n: int
    slice: Slice | None = None
    against_reference: bool = False


@dataclass(frozen=True, slots=True)
class WorstSample:
    """A sample that got worse.

    Attributes:
        sample: Its id, as `quantlab.harness.samples.escaped` writes it.
        label: What is true of it, in words; None if that is not known.
        reference: What the reference said, in words.
        variant: What the variant said.
        drop: How much worse it got, in ``unit``.
        unit: What ``drop`` counts, in words.
    """

    sample: str
    label: str | None
    reference: str
    variant: str
    drop: float
    unit: str


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One row of the comparison.

    Attributes:
        name: ``<backend>-<precision>[-<method>][+<n>excl]``.
        backend: Backend that ran it.
        requested: Precision asked for.
        proved: Precision found by inspection of the engine; None if nothing could be proved.
        proof: How it was proved, in words.
        execution: Native or emulated.
        size_bytes: Size of the engine file with its external data.
        sha256: Hash of the engine file.
        table_sha256: Hash of the calibration table, for quantized variants.
        outputs: Numerical drift by output.
        classification: Top-k decisions; None if no output looks like class scores.
        latency: None where latency was not measured.
        device: Times on the GPU by CUDA events, by trtexec's definitions; None where there are none.
        device_latency: Execution on the GPU in interleaved blocks, with the ratio to the reference; None where this
            variant or the reference has no times there.
        scores: Figures of the task, over all samples first, then slice by slice.
        worst: Samples that got worst, worst first.
        confusions: Cells of the confusion matrix that changed most.
    """

    name: str
    backend: str
    requested: Precision
    proved: Precision | None
    proof: str
    execution: Execution
    size_bytes: int
    sha256: str
    table_sha256: str | None
    outputs: tuple[OutputDrift, ...]
    classification: Classification | None
    latency: Latency | None
    device: DeviceFigures | None = None
    scores: tuple[Score, ...] = ()
    worst: tuple[WorstSample, ...] = ()
    confusions: tuple[CountChange, ...] = ()
    device_latency: Latency | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Variants compared with a reference on the same samples.

    Attributes:
        reference: Name of the reference variant; it is among ``variants``.
        variants: One result each, reference first.
        model: File name of the source model.
        model_sha256: Hash of the source model.
        data: Provenance of the evaluation data.
        data_sha256: Digest of the evaluation manifest.
        n_samples: Samples compared.
        seed: Seed of every random choice made here.
        noise_floor: Interval of the reference's latency ratio against itself (A/A control); None if not timed.
        environment: Versions, processor, threads.
        degradations: Everything that was degraded on the way, calibration and build included.
        task: What the model is for: ``classify``, ``outputs``, ``detect``, ``segment``, ``regress`` or ``custom``.
        slices_left_out: By column: slices that are not told, because there are too many of them.
        timing_warnings: What may make latencies other than they seem, such as a machine that is too noisy.
        device_noise_floor: As ``noise_floor``, of ``device_latency``.
    """

    reference: str
    variants: tuple[VariantResult, ...]
    model: str
    model_sha256: str
    data: Mapping[str, object]
    data_sha256: str
    n_samples: int
    seed: int
    noise_floor: Interval | None
    environment: Mapping[str, object]
    degradations: tuple[Degradation, ...]
    task: str = "outputs"
    slices_left_out: Mapping[str, int] = field(default_factory=dict)
    timing_warnings: tuple[TimingWarning, ...] = ()
    device_noise_floor: Interval | None = None

    def variant(self, name: str) -> VariantResult | None:
        """The result of that name, or None."""
        return next((result for result in self.variants if result.name == name), None)

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": COMPARISON_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Comparison:
        """Read ``comparison.json``.

        Raises:
            DataError: If the file is missing, damaged, or of another schema.
        """
        document = read_json(path, COMPARISON_SCHEMA, DataError, "comparison")
        document.pop("schema")
        comparison = from_plain(cls, document, str(path), DataError)
        names = [result.name for result in comparison.variants]
        if len(set(names)) != len(names) or comparison.reference not in names:
            raise DataError(
                f"comparison {path} is damaged",
                got=f"variants {', '.join(names) or 'none'}, reference {comparison.reference}",
                expected="variants of different names, the reference among them",
                hint="run quantlab compare again",
            )
        return comparison
