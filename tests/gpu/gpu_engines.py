"""Small models, and engines of them made by the library's own builder on the GPU that is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantlab.engines.cuda import Device
from quantlab.engines.record import EngineRecord, Profile
from quantlab.engines.sidecar import Sidecar, write_sidecar
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.files import sha256_bytes
from quantlab.precision import Execution, Precision

Array = NDArray[Any]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

SMALL = {"image": ((1, 3, 8, 8), (4, 3, 16, 16), (8, 3, 32, 32)), "side": ((1, 4), (4, 4), (8, 4))}
LARGE = {"image": ((8, 3, 32, 32), (16, 3, 32, 32), (32, 3, 64, 64)), "side": ((8, 4), (16, 4), (32, 4))}


class BuildRefusedError(AssertionError):
    """The library does not parse or build the model; with its reasons."""


def network() -> ModelProto:
    """Image [n, 3, h, w] and side [n, 4] -> scores [n, 10] and features [n, 16, h, w], in FP32."""
    rng = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.2).astype(np.float32), name)

    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Conv", ["image", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"], name="relu1"),
        make("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        make("Relu", ["c2"], ["features"], name="relu2"),
        make("GlobalAveragePool", ["features"], ["g"], name="pool"),
        make("Flatten", ["g"], ["f"], name="flatten"),
        make("Concat", ["f", "side"], ["j"], name="join", axis=1),
        make("Gemm", ["j", "w3", "b3"], ["scores"], name="fc"),
    ]
    stored = [weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("w2", 16, 16, 3, 3), weight("b2", 16)]
    stored += [weight("w3", 20, 10), weight("b3", 10)]
    graph = helper.make_graph(
        nodes,
        "network",
        [value("image", TensorProto.FLOAT, ["n", 3, "h", "w"]), value("side", TensorProto.FLOAT, ["n", 4])],
        [value("scores", TensorProto.FLOAT, ["n", 10]), value("features", TensorProto.FLOAT, ["n", 16, "h", "w"])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one_node(operator: str, kind: int, out: int | None = None, *, twice: bool = False) -> ModelProto:
    """``x`` [n] -> ``y`` by one node, which takes x once or twice."""
    value = helper.make_tensor_value_info
    shape = ["m", "k"] if operator == "NonZero" else ["n"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "x"] if twice else ["x"], ["y"], name=operator.lower())],
        operator,
        [value("x", kind, ["n"])],
        [value("y", kind if out is None else out, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feed(n: int = 4, size: int = 16, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, 3, size, size)).astype(np.float32) * (1 + seed % 5)
    return {"image": image, "side": rng.standard_normal((n, 4)).astype(np.float32)}


def on_cpu(proto: ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime computes on the CPU."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, dict(inputs)), strict=True))


def build(
    proto: ModelProto, profiles: Sequence[Mapping[str, Shapes]], folder: Path, flavour: Flavour, device: Device
) -> Path:
    """An engine file with its sidecar.

    Raises:
        BuildRefusedError: If the library refuses the model.
    """
    with device.active():
        data = _serialized(proto, profiles, flavour)
    path = folder / f"{flavour.backend}-fp32.engine"
    path.write_bytes(data)
    vouch(path, profiles, flavour, device)
    return path


def vouch(
    path: Path, profiles: Sequence[Mapping[str, Shapes]], flavour: Flavour, device: Device, **record: Any
) -> None:
    """Write the sidecar of a file as it is; ``record`` states another making."""
    facts, data = device.facts, path.read_bytes()
    made = {
        "flavour": flavour.backend,
        "version": flavour.version,
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "driver": facts.driver,
        "cuda": facts.cuda,
        "options": {},
        "profiles": tuple({name: Profile(*shapes) for name, shapes in profile.items()} for profile in profiles),
        "onnx_sha256": "0" * 64,
    }
    sidecar = Sidecar(
        name=path.stem,
        file=path.name,
        sha256=sha256_bytes(data),
        size_bytes=len(data),
        backend=flavour.backend,
        requested=Precision.FP32,
        proved=None,
        proof="made for a test",
        execution=Execution.NATIVE,
        target=None,
        method=None,
        excluded=(),
        model="network.onnx",
        model_sha256="0" * 64,
        graph_sha256="0" * 64,
        table_sha256=None,
        calibration_samples=(),
        preprocess_sha256=None,
        shapes={},
        fixed_batch=None,
        environment={},
        degradations=(),
        engine=EngineRecord(**{**made, **record}),  # type: ignore[arg-type]
    )
    write_sidecar(path, sidecar)


def _serialized(proto: ModelProto, profiles: Sequence[Mapping[str, Shapes]], flavour: Flavour) -> bytes:
    module = flavour.module
    log = TensorRTLog(module)
    builder = module.Builder(log.native)
    flags = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = module.OnnxParser(network, log.native)
    model = proto.SerializeToString()
    if not parser.parse(model):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BuildRefusedError(f"{flavour.product} cannot parse {proto.graph.name}: {'; '.join(reasons)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if flavour.builds_without_gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(module.ComputeCapability.CURRENT, 0)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (low, middle, high) in shapes.items():
            profile.set_shape(name, low, middle, high)
        config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildRefusedError(f"{flavour.product} cannot build {proto.graph.name}: {'; '.join(log.errors)}")
    return bytes(memoryview(serialized))
