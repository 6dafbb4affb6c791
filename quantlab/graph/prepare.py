"""Bringing a model into the form that is calibrated and run: simplified, folded, shapes known, batch dynamic.

Every rewrite is verified: the original and the rewritten graph run on seeded samples in ONNX Runtime, and a rewrite
that fails or changes the results is left out and counted as a degradation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx
from onnx import GraphProto, ModelProto

from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.errors import ModelError
from quantlab.files import sha256_bytes
from quantlab.graph.batchnorm import fold_batchnorm
from quantlab.graph.checks import check_structure, opset_of
from quantlab.graph.cleanup import name_nodes, remove_dead, remove_no_ops, strip_initializer_inputs
from quantlab.graph.folding import fold_constants
from quantlab.graph.model import Model, model_inputs
from quantlab.graph.reference import Reference, RunFailedError
from quantlab.graph.session import first_line
from quantlab.graph.shapes import BATCH, SettledInputs, impose_shapes, set_input_shapes, settle_inputs
from quantlab.graph.simplify import simplify
from quantlab.graph.skeleton import make_skeleton, restore_weights, typed_graph
from quantlab.graph.tensors import subgraphs

MIN_OPSET = 13
"""First opset whose QuantizeLinear and DequantizeLinear know channels."""

MIN_IR_VERSION = 8

_NO_DIMS: Mapping[str, int] = MappingProxyType({})
_NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})
_KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft"}
_BATCH_SAMPLES = 3
_FIXED_SAMPLES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A model ready for calibration.

    Attributes:
        model: The prepared graph: opset 13 or later, every node named, types and shapes inferred where possible,
            constants and batch normalizations folded. Its `sha256` is the source file's.
        notes: What was done, one sentence each.
        degradations: What could not be done.
        fixed_batch: None if the first axis of every input is dynamic (named ``batch``) and verified to be a batch; else
            the size that the first axis of the inputs must have (of the first input, if they differ).
        shapes: Input shapes that the caller imposed.
        graph_sha256: Hash of the prepared graph, its weights included; external weights through the source's hash.
    """

    model: Model
    notes: tuple[str, ...]
    degradations: tuple[Degradation, ...]
    fixed_batch: int | None
    shapes: Mapping[str, tuple[int, ...]]
    graph_sha256: str


def prepare(
    model: Model,
    *,
    dims: Mapping[str, int] = _NO_DIMS,
    input_shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
) -> Prepared:
    """Check, convert, simplify and fold a model, verifying each step against the original's results.

    Args:
        model: A loaded model; not changed.
        dims: Values of symbolic dimensions by name.
        input_shapes: Whole input shapes by name, with the batch axis first: 1 to let it become dynamic if possible,
            another number to fix it.

    Raises:
        ConfigError: If ``dims`` or ``input_shapes`` do not fit the model.
        ModelError: If ONNX Runtime cannot take the model, or a dimension other than the batch remains unknown.
    """
    start = ModelProto()
    start.CopyFrom(model.proto)
    strip_initializer_inputs(start)
    start.ir_version = max(start.ir_version, MIN_IR_VERSION)
    settled = settle_inputs(start, dims, input_shapes)
    work = _Preparation(model, start, list(settled.notes), input_shapes)
    n_samples = _BATCH_SAMPLES if settled.may_batch else _FIXED_SAMPLES
    try:
        single = Reference.take(model.with_proto(start), settled.specs, n_samples)
    except RunFailedError as error:
        work.degrade(f"the model could not be verified on random samples: {error.got}")
        return work.finish(settled, None)
    batched = _verified_batch(model, start, settled, single)
    work.reference = single if batched is None else batched
    if settled.may_batch and batched is None:
        work.notes.append("the batch size is fixed at 1: three samples at once give other results, or none")
    work.notes.extend(["the batch axis is dynamic"] if batched is not None else [])
    set_input_shapes(work.proto, settled.specs, dynamic_batch=batched is not None)
    work.step("conversion of the opset", _to_supported_opset)
    work.step("the simplifier", simplify)
    work.step("folding of constants", lambda proto: _folded(proto, work, model))
    work.step("folding of batch normalization", lambda proto: _without_batchnorm(proto, work, model))
    return work.finish(settled, batched)


def prepare_partially(
    model: Model, reason: str, input_shapes: Mapping[str, tuple[int | None, ...]] = _NO_SHAPES
) -> Prepared:
    """Give nodes names and infer shapes, for backends that run what ONNX Runtime cannot; nothing is simplified.

    Args:
        model: A loaded model; not changed.
        reason: Why it cannot be prepared as others are, for the degradation.
        input_shapes: Sizes to impose by input name, batch first; None leaves a size as the model declares it.

    Raises:
        ConfigError: If ``input_shapes`` name an input that the model lacks, or contradict it.
        ModelError: If the model is not valid.
    """
    proto = _copy(model.proto)
    strip_initializer_inputs(proto)
    proto.ir_version = max(proto.ir_version, MIN_IR_VERSION)
    impose_shapes(proto, input_shapes)
    remove_dead(proto)
    name_nodes(proto)
    _infer(proto)
    check_structure(proto, f"model {model.path or model.name}, with names and shapes,")
    first = model_inputs(proto)[0].shape
    size = first[0] if first else 1
    message = f"the model was neither simplified nor verified: {reason}"
    result = model.with_proto(proto)
    return Prepared(
        result,
        (),
        (Degradation(DegradationCode.NOT_SIMPLIFIED, message),),
        size if isinstance(size, int) else None,
        MappingProxyType({name: tuple(s for s in shape if s is not None) for name, shape in input_shapes.items()}),
        _graph_sha256(result),
    )


def foreign_operators(proto: ModelProto) -> tuple[str, ...]:
    """Operators, also of subgraphs, that neither ONNX, ONNX Runtime nor the model itself defines: ``domain:name``."""
    own = {function.domain for function in proto.functions}

    def found(graph: GraphProto) -> Iterator[str]:
        for node in graph.node:
            if node.domain not in _KNOWN_DOMAINS | own:
                yield f"{node.domain}:{node.op_type}"
            for inner in subgraphs(node):
                yield from found(inner)

    return tuple(dict.fromkeys(found(proto.graph)))


def _graph_sha256(model: Model) -> str:
    external = model.sha256 if model.data_folder is not None else ""
    return sha256_bytes(model.proto.SerializeToString(deterministic=True) + external.encode())


def _verified_batch(model: Model, start: ModelProto, settled: SettledInputs, single: Reference) -> Reference | None:
    """Reference with all samples in one batch, if the model gives the same for it as for each alone."""
    if not settled.may_batch:
        return None
    candidate = ModelProto()
    candidate.CopyFrom(start)
    set_input_shapes(candidate, settled.specs, dynamic_batch=True)
    try:
        joined = single.joined()
    except ValueError:  # outputs of different shapes, such as detections
        return None
    return joined if joined.difference(model.with_proto(candidate)) is None else None


@dataclass(slots=True)
class _Preparation:
    """The graph on its way, with what happened to it."""

    model: Model
    proto: ModelProto
    notes: list[str]
    shapes: Mapping[str, tuple[int, ...]]
    degradations: list[Degradation] = field(default_factory=list)
    reference: Reference | None = None

    def degrade(self, message: str) -> None:
        self.degradations.append(Degradation(DegradationCode.NOT_SIMPLIFIED, message))

    def step(self, name: str, rewrite: Callable[[ModelProto], ModelProto]) -> None:
        """Rewrite the graph, and keep the result only if it computes the same."""
        n_notes = len(self.notes)
        try:
            candidate = rewrite(self.proto)
            reason = self._difference(candidate)
        except ModelError as error:
            candidate, reason = self.proto, f"{error.what}: {error.got}"
        if reason is None:
            self.proto = candidate
        else:
            del self.notes[n_notes:]
            self.degrade(f"{name} was left out: {reason}")

    def _difference(self, candidate: ModelProto) -> str | None:
        if self.reference is None or candidate is self.proto:
            return None
        reason = self.reference.difference(self.model.with_proto(candidate))
        if reason is not None and self.reference.difference(self.model.with_proto(self.proto)) is not None:
            return f"the model's own results are not repeatable ({reason})"
        return reason

    def finish(self, settled: SettledInputs, batched: Reference | None) -> Prepared:
        """Clean up, infer shapes, check, and wrap the result."""
        if self.reference is None:
            set_input_shapes(self.proto, settled.specs, dynamic_batch=False)
        remove_dead(self.proto)
        name_nodes(self.proto)
        _infer(self.proto)
        check_structure(self.proto, f"model {self.model.path or self.model.name}, prepared,")
        first = settled.specs[0].shape
        size = first[0] if first else 1
        fixed = None if batched is not None else (size if isinstance(size, int) else 1)
        result = self.model.with_proto(self.proto)
        return Prepared(
            result,
            tuple(self.notes),
            merge_degradations(self.degradations),
            fixed,
            MappingProxyType(dict(self.shapes)),
            _graph_sha256(result),
        )


def _to_supported_opset(proto: ModelProto) -> ModelProto:
    opset = opset_of(proto)
    if opset >= MIN_OPSET:
        return proto
    try:
        converted = onnx.version_converter.convert_version(make_skeleton(proto), MIN_OPSET)
    except Exception as cause:  # the converter's C++ exceptions share no base class
        raise ModelError("the converter failed", got=first_line(cause)) from cause
    result = restore_weights(converted, proto)
    result.ir_version = max(result.ir_version, MIN_IR_VERSION)
    return result


def _copy(proto: ModelProto) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(proto)
    return result


def _folded(proto: ModelProto, work: _Preparation, model: Model) -> ModelProto:
    result = _copy(proto)
    n_removed = remove_no_ops(result)
    n_folded = fold_constants(result, model.data_folder)
    remove_dead(result)
    if n_removed:
        work.notes.append(f"{n_removed} Identity or Dropout nodes removed")
    if n_folded:
        work.notes.append(f"{n_folded} constant nodes folded")
    return result


def _without_batchnorm(proto: ModelProto, work: _Preparation, model: Model) -> ModelProto:
    result = _copy(proto)
    n_folded = fold_batchnorm(result, model.data_folder)
    if not n_folded:
        return proto
    remove_dead(result)
    work.notes.append(f"{n_folded} batch normalizations folded into the layer before")
    return result


def _infer(proto: ModelProto) -> None:
    """Fill in types and shapes of all tensors and outputs, in place; what cannot be inferred stays open."""
    inferred = typed_graph(proto)
    if inferred is proto.graph:
        return
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inferred.value_info)
    by_name = {value.name: value for value in inferred.output}
    for value in proto.graph.output:
        if value.name in by_name and by_name[value.name].HasField("type"):
            value.CopyFrom(by_name[value.name])


__all__ = ["BATCH", "MIN_OPSET", "Prepared", "foreign_operators", "prepare", "prepare_partially"]
