"""The result of running one quantized graph in several runtimes: plain records, saved as ``truth.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quantlab.degradation import Degradation
from quantlab.documents import dump_json, read_json
from quantlab.errors import DataError
from quantlab.harness.gap import Gap
from quantlab.harness.truth_figures import Estimate, TruthFigures
from quantlab.precision import Precision
from quantlab.records import from_plain, to_plain

TRUTH_SCHEMA = "quantlab.truth/1"


class Role(StrEnum):
    """What a row of the table is."""

    GRAPH = "graph"
    """A reference execution of the quantized graph itself."""
    ORIGINAL = "original"
    """A reference execution of the model that it was made from."""
    RUNTIME = "runtime"
    """A runtime under test."""


class Judgement(StrEnum):
    """What is said of a runtime."""

    AS_WRITTEN = "as-written"
    """It computes the graph as it is written, up to rounding."""
    DIFFERS = "differs"
    """It differs from the graph by more than rounding explains, and nothing shows that this costs accuracy."""
    OWN_ERROR = "own-error"
    """It is further from the original than the graph is: an error of its own."""
    CANNOT_TELL = "cannot-tell"
    """An interval holds the limit: the samples do not tell which of the others it is."""
    NON_FINITE = "non-finite"
    """It gave NaN or infinite values where the graph has none."""
    FAILED = "failed"
    """It refused the graph, or stopped while running it."""
    UNAVAILABLE = "unavailable"
    """It is not installed, or cannot run here."""
    REFERENCE = "reference"
    """It is not under test."""


@dataclass(frozen=True, slots=True)
class OutputTruth:
    """One output of one row against the references; None where a reference does not exist, or is the row itself.

    Attributes:
        output: Its name.
        graph: Against the truth of the quantized graph: the row's own error.
        exact: Against float64 of the original: quantization and runtime together.
        fp32: Against FP32 of the original, by ONNX Runtime without optimization.
        batch: A batch against the same samples one by one; None if the model takes one sample, or one batch failed.
        repeat: The same call a second time.
        figures: What the verdict rests on; None for references.
    """

    output: str
    graph: Gap | None
    exact: Gap | None
    fp32: Gap | None
    batch: Gap | None = None
    repeat: Gap | None = None
    figures: TruthFigures | None = None


@dataclass(frozen=True, slots=True)
class TruthRow:
    """One execution.

    Attributes:
        name: Such as ``openvino``, or ``float64 of the graph``.
        role: What it is.
        judgement: What is said of it.
        verdict: The same as a sentence, with the figures; for what was not run, the reason.
        outputs: By output, in the model's order; empty if it was not run.
        proved: Precision found by inspection of what it runs; None if nothing was proved.
        proof: How, in words.
        notes: What else was seen, such as batches that give other results.
    """

    name: str
    role: Role
    judgement: Judgement
    verdict: str
    outputs: tuple[OutputTruth, ...] = ()
    proved: Precision | None = None
    proof: str = ""
    notes: tuple[str, ...] = ()

    @property
    def loss(self) -> Estimate | None:
        """By how much it is further from the original than the graph says, in dB, of the output where that is most."""
        found = [one.figures.loss for one in self.outputs if one.figures is not None and one.figures.loss is not None]
        return max(found, key=lambda loss: loss.value, default=None)


@dataclass(frozen=True, slots=True)
class Intervals:
    """How intervals were made.

    Attributes:
        confidence: Coverage of each, two-sided.
        method: In words.
        resamples: Of the samples.
        seed: Of the resamples.
    """

    confidence: float
    method: str
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Truth:
    """One quantized graph in several runtimes, on the same samples.

    Attributes:
        graph: File name of the quantized graph.
        graph_sha256: Hash of it.
        model: File name of the original; None if it was not given.
        model_sha256: Hash of the original; None if it was not given.
        truth: What a runtime's own error is told from: ``float64`` or, where that cannot be had, ``float32``.
        rows: References first, then the runtimes as they were named.
        n_samples: Samples that every row saw, one by one; of these the intervals are.
        intervals: How they were made.
        batch_size: Samples of the batches that were compared with them.
        data: Provenance of the data.
        data_sha256: Digest of the manifest.
        environment: Versions, processor, threads.
        notes: What limits the table, such as float64 that could not be had, or references that disagree.
        degradations: Of the data and of the runtimes.
    """

    graph: str
    graph_sha256: str
    model: str | None
    model_sha256: str | None
    truth: str
    rows: tuple[TruthRow, ...]
    n_samples: int
    intervals: Intervals
    batch_size: int
    data: Mapping[str, object]
    data_sha256: str
    environment: Mapping[str, object]
    notes: tuple[str, ...]
    degradations: tuple[Degradation, ...]

    def row(self, name: str) -> TruthRow | None:
        """The row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def runtimes(self) -> tuple[TruthRow, ...]:
        """The rows under test."""
        return tuple(row for row in self.rows if row.role is Role.RUNTIME)

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": TRUTH_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read ``truth.json``.

        Raises:
            DataError: If the file is missing, damaged, or of another schema.
        """
        document = read_json(path, TRUTH_SCHEMA, DataError, "truth table")
        document.pop("schema")
        return from_plain(cls, document, str(path), DataError)
