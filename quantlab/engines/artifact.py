"""The last step of every builder: the graph of a variant, and the sidecar that vouches for the finished file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantlab.datasets import InputSpec
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.record import EngineRecord
from quantlab.engines.sidecar import RecoveryMark, Sidecar, write_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import ConfigError
from quantlab.files import sha256_file
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.metadata import own_preprocess, stated_preprocess, with_recovery
from quantlab.graph.model import Model, model_inputs, model_outputs
from quantlab.graph.qdq import Quantized, check_quantized, quantize_model
from quantlab.precision import Execution, Precision


@dataclass(frozen=True, slots=True)
class Ranges:
    """Where the ranges of a quantized variant come from.

    Attributes:
        method: Method, as the sidecar names it; None if no method chose them.
        samples: Content hashes of the samples, sorted; empty if they are not known.
        preprocess_sha256: Hash of their preprocessing, empty for ready tensors; None if it is not known.
        preprocess: The preprocessing, as JSON; None if it is not known or was assumed.
    """

    method: str | None = None
    samples: tuple[str, ...] = ()
    preprocess_sha256: str | None = None
    preprocess: str | None = None


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
        ranges: Ranges that stand in place of the variant's table; None for those of the table.
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
    ranges: Ranges | None = None


def quantized_graph(variant: Variant) -> Quantized:
    """The Q/DQ graph of a quantized variant, checked; made of the recovered model where there is one for it.

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
    table = variant.ranges if variant.calibrated else None
    found = variant.recovered
    exclude = (*variant.exclude, *(found.exclude if found is not None else ()))
    made = quantize_model(
        variant.model, table, variant.target, exclude, kind=kind, existing=variant.existing,
        rounded=found.rounded if found is not None else {},
    )  # fmt: skip
    check_quantized(made.proto)
    return made if found is None else replace(made, proto=with_recovery(made.proto, found.steps))


def vouch(variant: Variant, made: Made) -> Sidecar:
    """Write the sidecar of a finished file.

    Raises:
        OutputError: If it cannot be written.
    """
    source = variant.prepared.model
    table = variant.table if variant.calibrated and made.ranges is None else None
    ranges = made.ranges or Ranges(
        variant.method,
        table.provenance.samples if table else (),
        table.provenance.preprocess_sha256 if table and table.provenance.samples else None,  # imported: not known
        stated_preprocess(variant.table) if variant.table else None,
    )
    degradations = [*variant.prepared.degradations, *made.graph.degradations, *made.degradations]
    degradations += table.degradations if table else ()
    found = variant.recovered
    degradations += variant.degradations
    if made.proved is not variant.precision:
        degradations.append(not_proved(made.name, variant.precision, made.proved, made.proof))
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
        target=variant.target.name if variant.quantized and variant.existing is not ExistingPolicy.KEEP else None,
        method=ranges.method,
        excluded=made.graph.excluded,
        model=source.path.name if source.path else source.name,
        model_sha256=source.sha256,
        graph_sha256=variant.prepared.graph_sha256,
        table_sha256=table.sha256 if table else None,
        calibration_samples=ranges.samples,
        preprocess_sha256=ranges.preprocess_sha256,
        shapes=variant.prepared.shapes,
        fixed_batch=variant.prepared.fixed_batch,
        environment=made.environment,
        degradations=merge_degradations(degradations),
        skipped=made.graph.skipped,
        kept=made.graph.kept,
        session=made.session,
        inputs=_inputs(source),
        classes=class_count(source),
        preprocess=ranges.preprocess or own_preprocess(source.metadata),
        engine=made.engine,
        float32=made.graph.float32,
        recovery=RecoveryMark(found.steps, found.sha256) if found is not None else None,
    )
    write_sidecar(made.path, sidecar)
    return sidecar


def not_proved(name: str, requested: Precision, proved: Precision | None, proof: str) -> Degradation:
    """The degradation of an engine that is not proved to be what was asked for."""
    message = f"{name}: requested {requested}, proved {proved or 'nothing'}: {proof}"
    return Degradation(DegradationCode.PRECISION_NOT_PROVED, message)


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
