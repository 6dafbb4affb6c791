"""Small models, data in memory, and prepared variants for the tests of engines."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from qdq_checks import UNLIMITED

from quantlab.calibrators import CalibrationTable, Histogram, Provenance, measure_tensor, range_methods
from quantlab.datasets import InputStatistics, Manifest, ManifestEntry, Sample
from quantlab.degradation import Degradation
from quantlab.engines.observation import observe, observed_tensors
from quantlab.engines.variant import Variant
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.targets import ONNXRUNTIME, TargetProfile
from quantlab.precision import Precision
from quantlab.progress import Silent

CALIBRATED = (Precision.INT8, Precision.FP8)
"""Precisions that need a calibration table."""


def cnn(batch: int | str = "n") -> ModelProto:
    """Two inputs: image [batch, 3, 8, 8] and side [batch, 4] -> scores [batch, 6]; Conv, Clip, Conv, Relu, Gemm."""
    rng = np.random.default_rng(9)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)

    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Conv", ["image", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        make("Clip", ["c1", "zero", "six"], ["k1"], name="clip"),
        make("Conv", ["k1", "w2", "b2"], ["c2"], name="conv2"),
        make("Relu", ["c2"], ["r2"], name="relu"),
        make("GlobalAveragePool", ["r2"], ["g2"], name="pool"),
        make("Flatten", ["g2"], ["f2"], name="flatten"),
        make("Concat", ["f2", "side"], ["j2"], name="join", axis=1),
        make("Gemm", ["j2", "w3", "b3"], ["scores"], name="fc"),
    ]
    stored = [
        weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("b2", 8), weight("w3", 12, 6),
        weight("b3", 6), numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(np.float32(6), "six"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "cnn",
        [value("image", TensorProto.FLOAT, [batch, 3, 8, 8]), value("side", TensorProto.FLOAT, [batch, 4])],
        [value("scores", TensorProto.FLOAT, [batch, 6])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class MemoryData:
    """A data set of given samples."""

    name = "memory"
    class_names = None
    degradations: tuple[Degradation, ...] = ()

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def manifest(self) -> Manifest:
        return Manifest(tuple(ManifestEntry(s.id, s.sha256, s.label) for s in self.samples))

    def statistics(self, n: int = 64) -> tuple[InputStatistics, ...]:
        return ()

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "memory"}


def samples(n: int = 40, seed: int = 1) -> list[Sample]:
    """Samples for `cnn`, whose scale differs from one to the next."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        image = (rng.standard_normal((3, 8, 8)) * (0.2 + i % 7)).astype(np.float32)
        side = rng.standard_normal(4).astype(np.float32)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        made.append(Sample(f"sample#{i}", {"image": image, "side": side}, i % 6, digest))
    return made


def feed(n: int, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    chosen = samples(n, seed)
    return {name: np.stack([sample.inputs[name] for sample in chosen]) for name in ("image", "side")}


def prepared_cnn(batch: int | str = "n") -> Prepared:
    return prepare(Model.of(cnn(batch)))


def table_of(prepared: Prepared, histograms: Mapping[str, Histogram], method: str = "mse") -> CalibrationTable:
    entries = tuple(measure_tensor(name, histograms[name], range_methods()) for name in sorted(histograms))
    model = prepared.model
    provenance = Provenance(
        "0", "observed", model.name, model.sha256, prepared.graph_sha256, {}, None, "", ("d" * 64,), 99.99
    )
    return CalibrationTable(method, len(histograms), entries, provenance, ())


def calibrated(prepared: Prepared, method: str = "minmax") -> CalibrationTable:
    histograms = observe(prepared, MemoryData(samples()), observed_tensors(prepared), 1, Silent())
    return table_of(prepared, histograms, method)


def target_of(precision: Precision) -> TargetProfile:
    """Rules by which `cnn`, whose layers are small, can be built in a precision."""
    return UNLIMITED if precision is Precision.FP8 else ONNXRUNTIME


def variant(prepared: Prepared, precision: Precision, target: TargetProfile | None = None, **values: Any) -> Variant:
    table = calibrated(prepared) if precision in CALIBRATED else None
    made = Variant(prepared, "onnxruntime", precision, target or target_of(precision), table)
    return dataclasses.replace(made, **values)
