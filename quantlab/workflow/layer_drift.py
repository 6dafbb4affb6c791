"""Layer-by-layer drift of Q/DQ files, of the engines in a folder, or of a calibration table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from quantlab.calibrators.table import CalibrationTable
from quantlab.documents import dump_json
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import ConfigError, EngineMismatch
from quantlab.files import sha256_bytes, write_text
from quantlab.graph.checks import has_qdq
from quantlab.graph.metadata import moves_tensors, stated_recovery
from quantlab.graph.model import Model, load_model
from quantlab.graph.prepare import prepare
from quantlab.graph.qdq import QuantizationKind, quantize_model
from quantlab.graph.targets import TargetProfile
from quantlab.graph.twin import twin_graph
from quantlab.harness.layer_drift import layer_drift
from quantlab.harness.layer_record import LayerDrift
from quantlab.precision import Precision
from quantlab.progress import Narrator
from quantlab.records import to_plain
from quantlab.reports import render
from quantlab.workflow.build import check_table
from quantlab.workflow.compare import check_preprocess, check_same_preprocess, find_engines
from quantlab.workflow.recovery import find_recovery
from quantlab.workflow.sources import DataNeeds, DataRequest, open_data, open_model

LAYERS_LIST_SCHEMA = "quantlab.layers-list/1"


def layers_of_file(
    path: Path, model: Path, request: DataRequest, threads: int, narrator: Narrator
) -> tuple[LayerDrift, ...]:
    """Drift in a Q/DQ file, against the floating-point model that it was made from.

    Tensors are looked for in the model as it is and, where some are missing, in the model as ``quantlab calibrate``
    prepares it.

    Raises:
        ModelError: If a model cannot be used.
        EngineMismatch: If they have no tensors in common, or these hold other values, as one model was recovered.
        DataError: If the data cannot be read or do not fit.
    """
    quantized = load_model(path)
    exact = load_model(model)
    steps, exact_steps = stated_recovery(quantized.metadata), stated_recovery(exact.metadata)
    if steps != exact_steps and moves_tensors({*steps, *exact_steps}):
        raise EngineMismatch(
            f"tensors hold other values in the model that {path.name} was made of than in {model.name}",
            got=f"{model.name}, {_recovered_by(exact_steps)}",
            expected=f"the model that {path.name} was made of, {_recovered_by(steps)}",
            hint="name it with --model: of a recovered one, recovered/model.onnx beside the calibration table",
        )
    original = _matching(exact, quantized, narrator)
    dataset, _ = open_data(quantized, request, narrator)
    return (layer_drift(original, quantized, path.name, dataset, threads, narrator),)


def layers_of_engines(
    paths: Sequence[Path], request: DataRequest, threads: int, narrator: Narrator
) -> tuple[LayerDrift, ...]:
    """Drift in each quantized ONNX file that ``quantlab build`` wrote, against the FP32 one of the same folder.

    A compiled engine cannot be looked into; it is left out, and the narrator says so.

    Raises:
        ConfigError: If there is no FP32 ONNX file, or no quantized one.
        EngineMismatch: If they were not made from one model, or were calibrated with other preprocessing.
        ModelError: If a file cannot be used.
        DataError: If the data cannot be read or do not fit.
    """
    found = [(path, read_sidecar(path)) for path in find_engines(paths)]
    floats = [(path, sidecar) for path, sidecar in found if _is_onnx(path) and sidecar.requested is Precision.FP32]
    if not floats:
        raise ConfigError(
            "--layers needs the FP32 graph",
            got=", ".join(sidecar.name for _, sidecar in found),
            expected="an fp32 engine for onnxruntime among them",
            hint="build fp32 too, or name the .qdq.onnx file and --model",
        )
    path, reference = floats[0]
    original = load_model(path)
    quantized: list[tuple[Model, Sidecar]] = []
    for path, sidecar in found:
        if not _is_onnx(path):
            narrator.say(f"{sidecar.name} is compiled: its layers cannot be looked into; a Q/DQ file of it can")
        elif sidecar.recovery is not None and moves_tensors(sidecar.recovery.steps):
            narrator.say(
                f"{sidecar.name} is made of a recovered model, in which tensors hold other values than in "
                f"{reference.name}: its layers can be looked into with --table and --model"
            )
        elif has_qdq((model := load_model(path)).proto):
            quantized.append((model, sidecar))
    if not quantized:
        raise ConfigError(
            "none of the engines holds a quantized ONNX graph to look into",
            got=", ".join(sidecar.name for _, sidecar in found),
            expected="an int8 or fp8 engine for onnxruntime, or a .qdq.onnx file with --model",
        )
    for _, sidecar in quantized:
        if sidecar.graph_sha256 != reference.graph_sha256:
            raise EngineMismatch(
                f"engine {sidecar.name} was made from another prepared graph than {reference.name}",
                got=f"sha256 {sidecar.graph_sha256[:16]}...",
                expected=f"sha256 {reference.graph_sha256[:16]}...",
                hint="build all variants from one model into one folder",
            )
    dataset, resolved = open_data(DataNeeds.of_sidecar(reference), request, narrator)
    check_preprocess([sidecar for _, sidecar in quantized], resolved)
    named = dataclasses.replace(original, path=Path(reference.model), sha256=reference.model_sha256)
    return tuple(layer_drift(named, model, sidecar.name, dataset, threads, narrator) for model, sidecar in quantized)


def layers_of_table(
    table: Path,
    model: Path,
    target: TargetProfile,
    kind: QuantizationKind,
    request: DataRequest,
    threads: int,
    narrator: Narrator,
) -> tuple[LayerDrift, ...]:
    """Drift in the Q/DQ graph that a table makes of a model by the rules of a target; nothing is built.

    Raises:
        EngineMismatch: If the table was made from another model, or with other preprocessing.
        QuantlabError: As `quantize_model` and `open_data` raise them.
    """
    calibration = CalibrationTable.load(table)
    prepared = open_model(model, {}, narrator)
    check_table(prepared, calibration)
    found = find_recovery(table, calibration, prepared, narrator) if kind is QuantizationKind.INT8 else None
    variant = Variant(prepared, "layers", Precision.INT8, target, calibration, recovery=found)
    exact, name = prepared.model, f"{target.name}-{kind}"
    if (recovered := variant.recovered) is not None:
        made = quantize_model(recovered.model, recovered.table, target, recovered.exclude, rounded=recovered.rounded)
        if moves_tensors(recovered.steps):
            exact = recovered.model
            narrator.say("the recovered floating-point model, corrected biases included, is taken as the exact one")
    else:
        made = quantize_model(prepared.model, calibration, target, kind=kind)
        for degradation in variant.degradations:
            narrator.warn(degradation)
    digest = sha256_bytes(made.proto.SerializeToString(deterministic=True))
    quantized = dataclasses.replace(variant.model.with_proto(made.proto), sha256=digest)
    dataset, resolved = open_data(prepared.model, request, narrator)
    if calibration.provenance.samples:  # imported ranges do not say
        check_same_preprocess(table.name, calibration.provenance.preprocess_sha256, resolved)
    name += f"-{calibration.method}" if kind is QuantizationKind.INT8 else ""
    name += "-recovered" if recovered is not None else ""
    return (layer_drift(exact, quantized, name, dataset, threads, narrator),)


def write_layers(folder: Path, drifts: Sequence[LayerDrift]) -> tuple[Path, ...]:
    """Write ``layers-<variant>.csv``, ``.md`` and, last, ``.json`` for each.

    Raises:
        OutputError: If a file cannot be written.
    """
    written: list[Path] = []
    for drift in drifts:
        base = f"layers-{drift.variant.removesuffix('.onnx')}"
        paths = [folder / f"{base}{suffix}" for suffix in (".json", ".csv", ".md")]
        write_text(paths[1], render(drift, "csv"))
        write_text(paths[2], render(drift, "markdown"))
        write_text(paths[0], drift.to_json())
        written += paths
    return tuple(written)


def layers_document(drifts: Sequence[LayerDrift]) -> str:
    """One document: that of the only graph, or a list of several."""
    if len(drifts) == 1:
        return drifts[0].to_json()
    return dump_json({"schema": LAYERS_LIST_SCHEMA, "graphs": [to_plain(drift) for drift in drifts]})


def _recovered_by(steps: Sequence[str]) -> str:
    return f"recovered by {', '.join(steps)}" if steps else "not recovered"


def _is_onnx(path: Path) -> bool:
    return path.suffix == ".onnx"


def _matching(model: Model, quantized: Model, narrator: Narrator) -> Model:
    """The floating-point graph that has the tensors of the quantized one: the file's, or the prepared one."""
    missing = _unmatched(model, quantized)
    if missing == 0:
        return model
    prepared = prepare(model).model
    if (still := _unmatched(prepared, quantized)) < missing:
        narrator.say("the tensors of the Q/DQ file are those of the prepared model, which is taken as the exact one")
        model, missing = prepared, still
    if 0 < missing < float("inf"):
        narrator.say(f"{missing:.0f} quantized tensors have no counterpart in the floating-point model, left out")
    return model


def _unmatched(model: Model, quantized: Model) -> float:
    try:
        return len(twin_graph(model, quantized).unmatched)
    except EngineMismatch:
        return float("inf")
