"""TensorRT-RTX's builder, which needs no GPU: parse an ONNX model and build a strongly typed engine from it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import pytest
from onnx import ModelProto

PACKAGE = "tensorrt_rtx"
REASON = "needs the package tensorrt-rtx-cu13 (Linux on x86-64)"


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What the builder made.

    Attributes:
        size_bytes: Of the engine.
        weights_bytes: Of the weights in it, as the builder's log states them: INT8 and FP8 take a byte each.
        build_s: Time that building took, without parsing.
    """

    size_bytes: int
    weights_bytes: int
    build_s: float


class RtxError(AssertionError):
    """The parser or the builder refused a model; the message has every error with its node's name."""


def build_engine(proto: ModelProto, batch: int = 1) -> BuiltEngine:
    """Parse and build a model as a strongly typed network, at the builder's default optimization level.

    Args:
        proto: The model.
        batch: Size of every dimension that is not a number.

    Raises:
        RtxError: If the parser or the builder refuses it.
    """
    trt = pytest.importorskip(PACKAGE, reason=REASON)
    lines: list[tuple[Any, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.append((severity, message))

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(proto.SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        texts = [f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors]
        raise RtxError("TensorRT-RTX cannot parse the model\n" + "\n".join(texts))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(batch if dim < 0 else dim for dim in tensor.shape)
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    start = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if engine is None:
        severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
        raise RtxError("TensorRT-RTX cannot build the model\n" + "\n".join(m for s, m in lines if s in severe))
    weights = [int(found.group(1)) for _, m in lines if (found := re.search(r"Total Weights Memory: (\d+) bytes", m))]
    return BuiltEngine(int(engine.nbytes), sum(weights), seconds)
