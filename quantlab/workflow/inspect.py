"""Inspect: what a file is and what is in it, whatever kind it is."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from quantlab.calibrators.tensorrt_cache import CalibrationCache
from quantlab.datasets import METADATA_KEY, preprocess_from_metadata
from quantlab.engines.record import EngineRecord
from quantlab.engines.sidecar import SIDECAR_SCHEMA, SIDECAR_SUFFIX, Sidecar, by_reason, read_sidecar, sidecar_path
from quantlab.errors import DataError
from quantlab.files import is_file
from quantlab.graph.model import load_model, model_inputs, model_outputs
from quantlab.graph.proof import prove
from quantlab.graph.tensors import model_tensors, payload_bytes
from quantlab.records import to_plain
from quantlab.recovery.artifact import RECOVERY_NAME, check_files
from quantlab.recovery.result import RECOVERY_SCHEMA, Recovery
from quantlab.reports import Style, render
from quantlab.workflow.results import load_result, schema_of


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        kind: What the file is.
        text: For people.
        document: The same as plain values.
    """

    kind: str
    text: str
    document: dict[str, object]


def inspect_file(path: Path, style: Style) -> Inspection:
    """Look into a model, engine, sidecar, calibration table, TensorRT cache, comparison, verdict or recovered model.

    Raises:
        QuantlabError: If the file is missing, damaged or of no known kind.
    """
    if is_file(path / RECOVERY_NAME):
        return _inspect_recovery(path, style)
    if path.suffix == ".calib" or path.suffix == ".cache":
        return _inspect_cache(path)
    if path.name.endswith(SIDECAR_SUFFIX):
        return _inspect_engine(path.with_name(path.name.removesuffix(SIDECAR_SUFFIX)))
    if path.suffix == ".json":
        return _inspect_json(path, style)
    if is_file(sidecar_path(path)):
        return _inspect_engine(path)
    return _inspect_model(path)


def _inspect_json(path: Path, style: Style) -> Inspection:
    schema = schema_of(path)
    if schema == SIDECAR_SCHEMA:
        raise DataError(f"{path} is an engine sidecar", hint="inspect the engine file that it lies beside")
    result = load_result(path)
    document = {"schema": schema, **to_plain(result)}
    text = render(result, "terminal", style)
    return Inspection(schema.partition("/")[0].removeprefix("quantlab."), text, document)


def _inspect_recovery(folder: Path, style: Style) -> Inspection:
    """The folder of a recovered model, whose files must be those that it names."""
    recovery = Recovery.load(folder / RECOVERY_NAME)
    check_files(folder, recovery)
    steps = ", ".join(recovery.steps) or "no step, as none gained"
    head = f"recovered model {folder}: by {steps}; its files belong together"
    document = {"schema": RECOVERY_SCHEMA, **to_plain(recovery)}
    return Inspection("recovery", f"{head}\n{render(recovery, 'terminal', style)}", document)


def _inspect_cache(path: Path) -> Inspection:
    cache = CalibrationCache.load(path)
    lines = [
        f"TensorRT calibration cache, version {cache.version}, {cache.algorithm}, {len(cache.scales)} tensors",
        f"{'amax':>12}  {'scale':>12}  tensor",
        *(f"{127 * scale:12.6g}  {scale:12.6g}  {name}" for name, scale in cache.scales.items()),
    ]
    zero = sum(scale == 0 for scale in cache.scales.values())
    if zero:
        lines.append(f"{zero} tensors have scale 0: TensorRT keeps their layers in floating point")
    return Inspection("calibration-cache", "\n".join(lines), {"schema": "quantlab.cache/1", **to_plain(cache)})


def _inspect_engine(path: Path) -> Inspection:
    sidecar = read_sidecar(path)
    if sidecar.engine is not None:
        lines = [f"engine {sidecar.name}: sidecar and file belong together", *_sidecar_lines(sidecar)]
        lines += _record_lines(sidecar.engine)
        compiled = {"schema": "quantlab.inspect-engine/1", "sidecar": to_plain(sidecar), "model": None}
        return Inspection("engine", "\n".join(lines), compiled)
    model = _inspect_model(path)
    lines = [f"engine {sidecar.name}: sidecar and file belong together", *_sidecar_lines(sidecar), model.text]
    document = {"schema": "quantlab.inspect-engine/1", "sidecar": to_plain(sidecar), "model": model.document}
    return Inspection("engine", "\n".join(lines), document)


def _sidecar_lines(sidecar: Sidecar) -> list[str]:
    built = ", ".join(f"{name} {version}" for name, version in sidecar.environment.items())
    lines = [
        f"  requested     {sidecar.requested}, proved {sidecar.proved or 'nothing'}",
        f"  execution     {sidecar.execution} on {sidecar.backend}",
        f"  proof         {sidecar.proof}",
        f"  made from     {sidecar.model}, sha256 {sidecar.model_sha256[:16]}...",
        f"  versions      {built}",
    ]
    if sidecar.target:
        ranges = f"by {sidecar.method} ranges" if sidecar.method else "with exact extremes"
        by = ranges if sidecar.table_sha256 else "weights alone"
        lines.insert(2, f"  quantized     {by} under the rules of {sidecar.target}")
    if sidecar.recovery is not None:
        lines.append(f"  recovered     by {', '.join(sidecar.recovery.steps)}, {sidecar.recovery.sha256[:16]}...")
    if sidecar.excluded:
        lines.append(f"  excluded      {', '.join(sidecar.excluded)}")
    if sidecar.kept:
        lines.append(f"  kept          {len(sidecar.kept)} layers that the model held quantized already")
    lines += [f"  skipped       {layer}: {reason}" for layer, reason in sidecar.skipped.items()]
    for reason, names in by_reason(sidecar.float32).items():
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"  in FP32       {len(names)} x ({reason}): {some}")
    lines += [f"  open with     {option} = {value}" for option, value in sidecar.session.items()]
    lines += [f"  degraded      {degradation}" for degradation in sidecar.degradations]
    return lines


def _record_lines(record: EngineRecord) -> list[str]:
    """What a compiled engine belongs to, and what the builder was told."""
    gpu = f"{record.gpu}, compute capability {record.compute_capability}" if record.gpu else "built without a GPU"
    driver = f", driver for CUDA {record.cuda}" if record.cuda else ""
    lines = [f"  compiled by   {record.flavour} {record.version}: {gpu}{driver}"]
    for number, profile in enumerate(record.profiles):
        title = "profile" if len(record.profiles) == 1 else f"profile {number}"
        lines += [f"  {title:<13} {name} {shapes} (min:opt:max)" for name, shapes in profile.items()]
    lines += [f"  built with    {option} = {value}" for option, value in record.options.items()]
    lines += [f"  layers        {line}" for line in record.layers]
    return lines


def _inspect_model(path: Path) -> Inspection:
    model = load_model(path)
    proto = model.proto
    proof = prove(model)
    operators = Counter(node.op_type for node in proto.graph.node)
    parameters = sum(math.prod(tensor.dims) for _, tensor in model_tensors(proto))
    size = sum(payload_bytes(tensor) for _, tensor in model_tensors(proto))
    preprocess = preprocess_from_metadata(model.metadata)
    inputs, outputs = model_inputs(proto), model_outputs(proto)
    lines = [
        f"ONNX model {path.name}, opset {model.opset}, IR {proto.ir_version}, by {proto.producer_name or 'unknown'}",
        *(f"  input         {spec.name} {_shape(spec.shape)} {spec.dtype}" for spec in inputs),
        *(f"  output        {spec.name} {_shape(spec.shape)} {spec.dtype}" for spec in outputs),
        f"  parameters    {parameters:,} in {size:,} bytes" + (", in external files" if model.data_folder else ""),
        f"  operators     {', '.join(f'{name} {count}' for name, count in operators.most_common())}",
        f"  precision     {proof.precision or 'mixed or unknown'}: {proof.text}",
        f"  preprocessing {preprocess.describe() if preprocess else 'not stated in the model; pass --preprocess'}",
        f"  sha256        {model.sha256}",
    ]
    document = {
        "schema": "quantlab.inspect-model/1",
        "file": path.name,
        "sha256": model.sha256,
        "opset": model.opset,
        "inputs": to_plain(inputs),
        "outputs": to_plain(outputs),
        "parameters": parameters,
        "size_bytes": size,
        "operators": dict(operators.most_common()),
        "precision": proof.precision.value if proof.precision else None,
        "proof": proof.text,
        "preprocess": preprocess.to_plain() if preprocess else None,
        "metadata": {key: value for key, value in model.metadata.items() if key != METADATA_KEY},
    }
    return Inspection("model", "\n".join(lines), document)


def _shape(shape: tuple[int | str | None, ...] | None) -> str:
    return "[?]" if shape is None else "[" + ",".join("?" if dim is None else str(dim) for dim in shape) + "]"
