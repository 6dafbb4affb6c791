"""The sidecar of an engine file: what it is, what made it, and what was proved about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantlab.datasets import InputSpec
from quantlab.degradation import Degradation
from quantlab.documents import dump_json, read_json
from quantlab.engines.record import EngineRecord
from quantlab.errors import EngineMismatch
from quantlab.files import is_file, sha256_file, write_text
from quantlab.precision import Execution, Precision
from quantlab.records import from_plain, to_plain

SIDECAR_SCHEMA = "quantlab.engine/1"
SIDECAR_SUFFIX = ".engine.json"


@dataclass(frozen=True, slots=True)
class RecoveryMark:
    """That an engine was made of a recovered model.

    Attributes:
        steps: Names of the steps that were kept, in order.
        sha256: Of the recovery.
    """

    steps: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Provenance of an engine file.

    Attributes:
        name: Variant name.
        file: Engine file name, beside the sidecar.
        sha256: Hash of the engine file.
        size_bytes: Size of the engine file and its external data.
        backend: Backend it is for.
        requested: Precision asked for.
        proved: Precision found by inspecting the finished file; None if nothing could be proved.
        proof: How, in words.
        execution: Whether this backend computes natively in the precision.
        target: Q/DQ rules used; None for unquantized variants.
        method: Range method; None where no method chose the ranges.
        excluded: Layers kept in floating point on request.
        model: File name of the source model.
        model_sha256: Hash of the source model.
        graph_sha256: Hash of the prepared graph.
        table_sha256: Hash of the calibration table; None if none was used.
        calibration_samples: Content hashes of the calibration samples, sorted.
        preprocess_sha256: Hash of the preprocessing used in calibration; None if no table was used.
        shapes: Input shapes that were imposed.
        fixed_batch: Batch size the engine is limited to; None if free.
        environment: Versions of what built it.
        degradations: From preparation, calibration and build.
        skipped: Layers that a size limit of the target keeps in floating point, with the reason.
        kept: Layers that were quantized in the source model already.
        session: Options that the backend must be given to run this file as it was measured, besides those that every
            file is run with.
        inputs: Inputs of the model, without the batch axis; empty in sidecars that do not state them.
        classes: Number of classes of the output that holds class scores; None if there is none such.
        preprocess: Preprocessing of its calibration, or else the one that its model states, as JSON; None if unknown.
        engine: The making of a compiled engine; None for files that are portable.
        float32: Nodes of a 16-bit graph that stay FP32 though nobody excluded them, with the reason.
        recovery: The recovery that it was made of; None if it was made of the prepared graph itself.
    """

    name: str
    file: str
    sha256: str
    size_bytes: int
    backend: str
    requested: Precision
    proved: Precision | None
    proof: str
    execution: Execution
    target: str | None
    method: str | None
    excluded: tuple[str, ...]
    model: str
    model_sha256: str
    graph_sha256: str
    table_sha256: str | None
    calibration_samples: tuple[str, ...]
    preprocess_sha256: str | None
    shapes: Mapping[str, tuple[int, ...]]
    fixed_batch: int | None
    environment: Mapping[str, str]
    degradations: tuple[Degradation, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    session: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    classes: int | None = None
    preprocess: str | None = None
    engine: EngineRecord | None = None
    float32: Mapping[str, str] = field(default_factory=dict)
    recovery: RecoveryMark | None = None


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by what they have in common: their reason up to the details in brackets; that of the most names first."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason.partition(" (")[0], []).append(name)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


def sidecar_path(engine: Path) -> Path:
    """Path of the sidecar of an engine file."""
    return engine.with_name(engine.name + SIDECAR_SUFFIX)


def write_sidecar(engine: Path, sidecar: Sidecar) -> None:
    """Write the sidecar beside its engine.

    Raises:
        OutputError: If it cannot be written.
    """
    write_text(sidecar_path(engine), dump_json({"schema": SIDECAR_SCHEMA, **to_plain(sidecar)}))


def read_sidecar(engine: Path) -> Sidecar:
    """Read an engine's sidecar and check that it belongs to the file.

    Raises:
        EngineMismatch: If the sidecar is missing or damaged, or the file is not the one it describes.
    """
    if not is_file(sidecar_path(engine)):
        raise EngineMismatch(
            f"engine {engine} has no sidecar",
            expected=f"{sidecar_path(engine).name} beside it",
            hint="name an engine that quantlab build wrote, and keep both files together",
        )
    document = read_json(sidecar_path(engine), SIDECAR_SCHEMA, EngineMismatch, "engine sidecar")
    document.pop("schema")
    sidecar = from_plain(Sidecar, document, str(sidecar_path(engine)), EngineMismatch)
    try:
        actual = sha256_file(engine)
    except OSError as cause:
        raise EngineMismatch(f"cannot read engine {engine}", got=cause.strerror, hint="build it again") from cause
    if actual != sidecar.sha256:
        raise EngineMismatch(
            f"engine {engine} is not the file its sidecar describes",
            got=f"sha256 {actual[:16]}...",
            expected=f"sha256 {sidecar.sha256[:16]}...",
            hint="build it again",
        )
    return sidecar
