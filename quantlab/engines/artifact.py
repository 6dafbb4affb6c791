"""The last step of every builder: the graph of a variant, and the sidecar that vouches for the finished file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantlab.datasets import InputSpec
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.record import EngineRecord
from quantlab.engines.sidecar import Sidecar, write_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import ConfigError
from quantlab.files import sha256_file
from quantlab.graph.metadata import own_preprocess, stated_preprocess
from quantlab.graph.model import Model, model_inputs, model_outputs
from quantlab.graph.qdq import Quantized, check_quantized, quantize_model
from quantlab.precision import Execution, Precision


@dataclass(frozen=True, slots=True)
class Made:
    """A finished engine file, as its builder knows it.

    Attributes:
        name: Variant name.
        path: The file.
        size_bytes: Of the file and its external data.
        graph: The account of the graph it was made from.
        proved: Precision found; None if nothing could be proved.
        proof: How, in words.
        execution: Whether the backend computes natively in the precision.
        environment: Versions of what built it.
        session: Options that the backend must be given to run it.
        engine: The making of a compiled engine.
        degradations: Of the build itself.
    """

    name: str
    path: Path
    size_bytes: int
    graph: Quantized
    proved: Precision | None
    proof: str
    execution: Execution
    environment: Mapping[str, str]
    session: Mapping[str, str] = field(default_factory=dict)
    engine: EngineRecord | None = None
    degradations: tuple[Degradation, ...] = ()


def quantized_graph(variant: Variant) -> Quantized:
    """The Q/DQ graph of a quantized variant, checked.

    Raises:
        ConfigError: If a table is needed and missing.
        QuantlabError: As `quantize_model` raises them.
    """
    kind = variant.kind
    if kind is None:
        raise ValueError(f"{variant.precision} is not quantized")
    if variant.calibrated and variant.table is None:
        raise ConfigError(
            f"{variant.precision} needs a calibration table", hint="run quantlab calibrate and pass --table"
        )
    table = variant.table if variant.calibrated else None
    source = variant.prepared.model
    made = quantize_model(source, table, variant.target, variant.exclude, kind=kind, existing=variant.existing)
    check_quantized(made.proto)
    return made


def vouch(variant: Variant, made: Made) -> Sidecar:
    """Write the sidecar of a finished file.

    Raises:
        OutputError: If it cannot be written.
    """
    source = variant.prepared.model
    table = variant.table if variant.calibrated else None
    degradations = [*variant.prepared.degradations, *made.graph.degradations, *made.degradations]
    degradations += table.degradations if table else ()
    if made.proved is not variant.precision:
        found = made.proved or "nothing"
        message = f"{made.name}: requested {variant.precision}, proved {found}: {made.proof}"
        degradations.append(Degradation(DegradationCode.PRECISION_NOT_PROVED, message))
    sidecar = Sidecar(
        name=made.name,
        file=made.path.name,
        sha256=sha256_file(made.path),
        size_bytes=made.size_bytes,
        backend=variant.backend,
        requested=variant.precision,
        proved=made.proved,
        proof=made.proof,
        execution=made.execution,
        target=variant.target.name if variant.quantized else None,
        method=variant.method,
        excluded=made.graph.excluded,
        model=source.path.name if source.path else source.name,
        model_sha256=source.sha256,
        graph_sha256=variant.prepared.graph_sha256,
        table_sha256=table.sha256 if table else None,
        calibration_samples=table.provenance.samples if table else (),
        preprocess_sha256=table.provenance.preprocess_sha256 if table else None,
        shapes=variant.prepared.shapes,
        fixed_batch=variant.prepared.fixed_batch,
        environment=made.environment,
        degradations=merge_degradations(degradations),
        skipped=made.graph.skipped,
        kept=made.graph.kept,
        session=made.session,
        inputs=_inputs(source),
        classes=class_count(source),
        preprocess=(stated_preprocess(variant.table) if variant.table else None) or own_preprocess(source.metadata),
        engine=made.engine,
    )
    write_sidecar(made.path, sidecar)
    return sidecar


def _inputs(model: Model) -> tuple[InputSpec, ...]:
    """Inputs without the batch axis; nothing if one has no axes."""
    specs = model_inputs(model.proto)
    if any(not spec.shape for spec in specs):
        return ()
    return tuple(
        InputSpec(spec.name, tuple(dim if isinstance(dim, int) else None for dim in (spec.shape or ())[1:]), spec.dtype)
        for spec in specs
    )


def class_count(model: Model) -> int | None:
    """Number of classes of the first output that looks like class scores, where it is known."""
    for spec in model_outputs(model.proto):
        if spec.shape is not None and len(spec.shape) == 2 and spec.dtype.startswith("float"):
            classes = spec.shape[1]
            return classes if isinstance(classes, int) and classes >= 2 else None
    return None
