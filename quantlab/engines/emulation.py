"""What each arithmetic would give for the inputs of a probe, computed on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from quantlab.engines.protocol import Arrays
from quantlab.errors import EngineMismatch, ModelError, QuantlabError
from quantlab.graph.checks import WEIGHTED_OPS
from quantlab.graph.double import Rounding, open_double
from quantlab.graph.double_operands import is_aligned, is_narrow, weighted_nodes
from quantlab.graph.half import FORMATS, to_half
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import Model, Optimization, model_outputs, open_session, tensor_array
from quantlab.graph.session import first_line
from quantlab.precision import Precision

MAX_VALUES = 100_000
"""Most values of one output that are kept, all calls together."""

TRUTH, FP32, FP32_UNFUSED = "truth", "fp32", "fp32-unfused"
TF32, TF32_TRUNCATED = "tf32", "tf32-truncated"
TF32_ALIGNED, TF32_NARROW_CUT = "tf32-aligned", "tf32-narrow-cut"
FP16, FP16_TAIL, FP16_WEIGHTS = "fp16", "fp16-float-tail", "fp16-weights"
BF16, BF16_TAIL, BF16_WEIGHTS = "bf16", "bf16-float-tail", "bf16-weights"
OWN, OWN_TF32 = "own", "own-tf32"

FLOAT64_REFERENCE = "float64"
FLOAT32_REFERENCE = "float32 on the CPU"

_DISTRUST = 1e-3
"""Relative difference from float32 beyond which float64 results are taken for wrong: no sound float32 is that bad."""

Run = Callable[[Arrays], Arrays]
Values = NDArray[np.float64]


def float_outputs(model: Model, results: Sequence[Arrays]) -> dict[str, int]:
    """Sizes of the float outputs that have the same size in every call.

    Raises:
        ModelError: If there are none.
    """
    sizes = {
        name: value.size
        for name, value in results[0].items()
        if (value.dtype.kind == "f" or value.dtype.name == "bfloat16")
        and value.size
        and all(outputs[name].size == value.size for outputs in results)
    }
    if not sizes:
        raise ModelError(
            f"model {model.name} has no floating-point outputs of a fixed size to compare",
            got=", ".join(f"{spec.name} ({spec.dtype})" for spec in model_outputs(model.proto)),
            hint="its arithmetic cannot be told from integer outputs",
        )
    return sizes


def kept_values(outputs: Arrays, sizes: Mapping[str, int], calls: int) -> Values:
    """The values of one call's outputs that are compared, one output after the other.

    Args:
        outputs: Whole outputs by name.
        sizes: Elements of each output that is compared, by name.
        calls: Number of calls, which share `MAX_VALUES`.

    Raises:
        EngineMismatch: If an output is missing or of another size.
    """
    parts = []
    for name, size in sizes.items():
        if name not in outputs:
            raise EngineMismatch(
                f"the engine has no output {name!r}", got=", ".join(outputs) or "none", expected="the model's outputs"
            )
        value = np.asarray(outputs[name])
        if value.size != size:
            raise EngineMismatch(
                f"output {name!r} of the engine has another size", got=f"{value.size} elements",
                expected=f"{size}, as the probe's inputs give", hint="build engine and probe from the same model",
            )  # fmt: skip
        parts.append(value.reshape(-1)[:: stride(size, calls)].astype(np.float64))
    return np.concatenate(parts)


def stride(size: int, calls: int) -> int:
    """Every how manieth element of an output is kept."""
    return max(1, math.ceil(size * calls / MAX_VALUES))


def open_plain(model: Model, threads: int, optimize: Optimization = Optimization.ALL) -> Run:
    """A call of a model in ONNX Runtime on the CPU.

    Raises:
        ModelError: If ONNX Runtime cannot take the model; from the call, if it stops while running.
    """
    session = open_session(model, threads=threads, optimize=optimize, log_severity=4)
    names = [output.name for output in session.get_outputs()]

    def run(feed: Arrays) -> dict[str, NDArray[np.generic]]:
        try:
            return dict(zip(names, session.run(None, dict(feed)), strict=True))
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise ModelError("ONNX Runtime stopped while running the model", got=first_line(cause)) from cause

    return run


def _float_tail(model: Model, precision: Precision) -> Model:
    """The 16-bit emulation without the roundings that no weighted layer sees: as if the last layers stored float32."""
    proto = to_half(model, precision)[0]
    seen: set[str] = set()
    for node in reversed(proto.graph.node):
        if node.op_type in WEIGHTED_OPS or not seen.isdisjoint(node.output):
            seen.update(node.input)
        elif node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == FORMATS[precision].onnx_type:
                    attribute.i = TensorProto.FLOAT
    return model.with_proto(proto)


def _half_weights(model: Model, precision: Precision) -> Model:
    """The model with its float weights rounded to a 16-bit format and nothing else."""
    half = FORMATS[precision]
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for initializer in proto.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            value = np.clip(np.asarray(tensor_array(model, initializer)), -half.largest, half.largest)
            initializer.CopyFrom(onnx.numpy_helper.from_array(half.round(value), initializer.name))
    return model.with_proto(proto)


class Emulation:
    """Results by arithmetic, as they are gathered."""

    def __init__(
        self,
        model: Model,
        feeds: Sequence[Arrays],
        sizes: Mapping[str, int],
        threads: int,
    ) -> None:
        self.model = model
        self.feeds = feeds
        self.sizes = sizes
        self.threads = threads
        self.expected: dict[str, Values] = {}
        self.notes: list[str] = []

    def take(self, name: str, opened: Callable[[], Run]) -> bool:
        """Run all calls in one arithmetic; a note, and nothing else, if that fails."""
        try:
            run = opened()
            self.expected[name] = np.stack([kept_values(run(feed), self.sizes, len(self.feeds)) for feed in self.feeds])
        except QuantlabError as error:
            if name == FP32_UNFUSED:
                raise
            self.notes.append(f"{name} could not be emulated: {error.what}: {error.got}")
            return False
        return True

    def take_truth(self) -> str:
        """Float64 if it runs and is no nonsense, with the TF32 of further kernels; else the unfused float32."""
        plain = self.expected[FP32_UNFUSED]
        if self.take(TRUTH, lambda: open_double(self.model).run):
            truth = self.expected[TRUTH]
            scale = float(np.linalg.norm(truth[np.isfinite(truth)]))
            if bool(np.isfinite(truth).all()) and float(np.linalg.norm(plain - truth)) <= _DISTRUST * scale:
                self.take(TF32_TRUNCATED, lambda: open_double(self.model, Rounding.TF32_TRUNCATED).run)
                self._take_shapes()
                return FLOAT64_REFERENCE
            self.notes.append("float64 differs from float32 by more than rounding explains and was not used")
        self.expected[TRUTH] = plain
        return FLOAT32_REFERENCE

    def _take_shapes(self) -> None:
        """TF32 where shapes decide on the kernels, if they make a difference."""
        graph = self.model.proto.graph
        index = GraphIndex(graph)
        aligned = [node for node in weighted_nodes(graph) if is_aligned(index, node)]
        if aligned and len(aligned) < len(weighted_nodes(graph)):
            self.take(TF32_ALIGNED, lambda: open_double(self.model, Rounding.TF32_ALIGNED).run)
        if any(is_narrow(index, node) for node in aligned):
            self.take(TF32_NARROW_CUT, lambda: open_double(self.model, Rounding.TF32_NARROW_CUT).run)

    def take_half(self, precision: Precision) -> None:
        """A 16-bit format as it is emulated, with a float32 tail, and in the weights alone."""
        model, threads = self.model, self.threads
        self.take(precision.value, lambda: open_plain(model.with_proto(to_half(model, precision)[0]), threads))
        self.take(f"{precision}-float-tail", lambda: open_plain(_float_tail(model, precision), threads))
        self.take(f"{precision}-weights", lambda: open_plain(_half_weights(model, precision), threads))

    def take_own(self, own: Model) -> None:
        """The variant's graph in float64 with the roundings that it states, else as ONNX Runtime runs it."""
        n_notes = len(self.notes)
        if self.take(OWN, lambda: open_double(own, Rounding.AS_TYPED).run):
            self.take(OWN_TF32, lambda: open_double(own, Rounding.TF32).run)
            return
        if self.take(OWN, lambda: open_plain(own, self.threads, Optimization.NONE)):
            del self.notes[n_notes:]
            self.notes.append("the variant's own graph was run by ONNX Runtime on the CPU, not in float64")
