"""The smallest work for a GPU that shows a mistake: a product of two matrices, compared with float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantlab.engines.cuda import open_device
from quantlab.engines.onnxruntime_provider import open_cuda_session
from quantlab.engines.tensorrt.compatibility import check_validity
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.errors import EngineMismatch
from quantlab.graph.model import Model

_OTHER_VERSION = (
    "try another version: on compute capability 9.0 TensorRT and TensorRT-RTX 1.6 run, TensorRT-RTX 1.7 does not"
)

Matrix = NDArray[np.float32]


def build_product(flavour: Flavour, size: int, *, current_gpu: bool = False) -> bytes:
    """Build an engine for ``y = x @ w`` [size, size] in FP32, with TF32 forbidden.

    Args:
        flavour: Module that builds it.
        size: Rows and columns.
        current_gpu: Whether to build for the GPU that is here, where the module would build for others too.

    Raises:
        RuntimeError: If the builder gives nothing; with its own words.
    """
    module = flavour.module
    log = TensorRTLog(module)
    builder = module.Builder(log.native)
    typing = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typing is None else 1 << int(typing))
    weight = _matrices(size)[1]  # TensorRT does not copy it
    plain = module.MatrixOperation.NONE
    x = network.add_input("x", module.float32, (size, size))
    w = network.add_constant((size, size), module.Weights(weight)).get_output(0)
    y = network.add_matrix_multiply(x, plain, w, plain).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    if current_gpu and flavour.builds_without_gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(module.ComputeCapability.CURRENT, 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("; ".join(log.errors) or "the builder gave no engine and no reason")
    return bytes(plan)


def run_product(flavour: Flavour, plan: bytes, size: int) -> float:
    """Run an engine of `build_product` on GPU 0; its relative error against float64.

    Raises:
        QuantlabError: If the GPU cannot be used, or the engine is not valid on it.
        RuntimeError: If the engine does not load or run; with TensorRT's own words.
    """
    log = TensorRTLog(flavour.module)
    device = open_device()
    x, w = _matrices(size)
    y = np.zeros_like(x)
    with device.active():
        runtime = flavour.module.Runtime(log.native)
        gpu = f"{device.facts.name}, compute capability {device.facts.compute_capability}"
        try:
            check_validity(flavour, runtime, plan, (), "of one layer", log=log)
        except EngineMismatch as error:
            raise RuntimeError(f"{flavour.product} does not support {gpu}: {error.got}; {_OTHER_VERSION}") from error
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reasons = "; ".join(log.errors) or "no reason is given"
            raise RuntimeError(f"{flavour.product} does not load its engine on {gpu}: {reasons}; {_OTHER_VERSION}")
        context = engine.create_execution_context()
        stream = device.stream()
        memory = {name: device.driver.mem_alloc(x.nbytes) for name in ("x", "y")}
        device.driver.memcpy_htod(memory["x"], x)
        for name, buffer in memory.items():
            context.set_tensor_address(name, int(buffer))
        ran = context.execute_async_v3(stream.handle)
        stream.synchronize()
        device.driver.memcpy_dtoh(y, memory["y"])
        for buffer in memory.values():
            buffer.free()
        del context, engine, runtime, stream
    if not ran:
        raise RuntimeError("; ".join(log.errors) or "the engine did not run, and TensorRT gives no reason")
    return _error(y, x, w)


def run_on_cuda(size: int, *, use_tf32: bool) -> float:
    """Run a product by ONNX Runtime's CUDA provider; its relative error against float64.

    Raises:
        QuantlabError: If the provider or the GPU cannot be used.
    """
    x, w = _matrices(size)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [info("x", TensorProto.FLOAT, [size, size])],
        [info("y", TensorProto.FLOAT, [size, size])],
        [numpy_helper.from_array(w, "w")],
    )
    model = Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    session, _ = open_cuda_session(model, {"use_tf32": str(int(use_tf32))}, {}, 1)
    return _error(session.run(None, {"x": x})[0], x, w)


def _matrices(size: int) -> tuple[Matrix, Matrix]:
    x, w = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    return x, w


def _error(y: NDArray[Any], x: Matrix, w: Matrix) -> float:
    """Euclidean norm of the error relative to that of the result."""
    truth = x.astype(np.float64) @ w.astype(np.float64)
    return float(np.linalg.norm(y - truth) / np.linalg.norm(truth))
