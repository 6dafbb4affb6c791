"""Layer-by-layer drift against NumPy, and where most is said to be lost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from harness_data import MemoryData
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantlab.errors import DataError, EngineMismatch, MeasurementError
from quantlab.graph.model import Model
from quantlab.graph.twin import PartKind
from quantlab.harness.layer_drift import find_worst, layer_drift
from quantlab.harness.layer_record import LayerDrift, PartDrift
from quantlab.progress import Silent

Floats = NDArray[np.float64]

RNG = np.random.default_rng(7)
ROWS = RNG.standard_normal((6, 4)).astype(np.float32)
W1, W2 = (RNG.standard_normal((4, 4)).astype(np.float32) for _ in range(2))
B2 = RNG.standard_normal(4).astype(np.float32)
S1, S2, SX, SY = (np.float32(value) for value in (0.02, 0.02, 0.03, 0.5))


def codes(values: NDArray[np.float32], scale: np.float32) -> NDArray[np.int8]:
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int8)


def rounded(values: Floats, scale: np.float32) -> Floats:
    return np.clip(np.rint(values / np.float64(scale)), -128, 127) * np.float64(scale)


def model(*, quantized: bool, batch: int | str = "n", w2: NDArray[np.float32] = W2) -> Model:
    """x -> product -> Relu -> product and bias -> out; quantized: x, the Relu's output y, and both weights."""
    make, value = helper.make_node, helper.make_tensor_value_info
    stored: dict[str, object] = {"b": B2}
    nodes = [
        make("MatMul", ["x", "w1"], ["m1"], name="first"),
        make("Relu", ["m1"], ["y"], name="relu"),
        make("Gemm", ["y", "w2", "b"], ["out"], name="second"),
    ]
    if quantized:
        stored |= {"sx": SX, "sy": SY, "s1": S1, "s2": S2, "z": np.int8(0), "w1q": codes(W1, S1), "w2q": codes(w2, S2)}
        pairs = {"x": "sx", "y": "sy"}
        nodes[0].input[:] = ["x_dq", "w1_dq"]
        nodes[2].input[:] = ["y_dq", "w2_dq", "b"]
        for name, scale in reversed(pairs.items()):
            pair = [
                make("QuantizeLinear", [name, scale, "z"], [f"{name}_q"], name=f"{name}.q"),
                make("DequantizeLinear", [f"{name}_q", scale, "z"], [f"{name}_dq"], name=f"{name}.dq"),
            ]
            position = 2 if name == "y" else 0
            nodes[position:position] = pair
        nodes[:0] = [make("DequantizeLinear", [f"w{i}q", f"s{i}"], [f"w{i}_dq"], name=f"w{i}.dq") for i in (1, 2)]
    else:
        stored |= {"w1": W1, "w2": w2}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [batch, 4])],
        [value("out", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return Model.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(original: Model | None = None, quantized: Model | None = None, **values: int) -> LayerDrift:
    return layer_drift(
        original or model(quantized=False), quantized or model(quantized=True), "v", MemoryData(ROWS, [None] * 6), 1,
        Silent(), **values,
    )  # fmt: skip


def db(exact: Floats, found: Floats) -> float:
    return 10 * math.log10(float(np.sum(exact**2)) / float(np.sum((exact - found) ** 2)))


def part(drift: LayerDrift, kind: PartKind, tensor: str) -> PartDrift:
    (found,) = (one for one in drift.of_kind(kind) if one.tensor == tensor)
    return found


X = ROWS.astype(np.float64)
Y = np.maximum(X @ W1.astype(np.float64), 0)
OUT = Y @ W2.astype(np.float64) + B2
W1_Q, W2_Q = (codes(w, s).astype(np.float64) * np.float64(s) for w, s in ((W1, S1), (W2, S2)))
X_Q = rounded(X, SX)
Y_ARRIVING = np.maximum(X_Q @ W1_Q, 0)
Y_Q = rounded(Y_ARRIVING, SY)
OUT_Q = Y_Q @ W2_Q + B2


class TestFigures:
    def test_tensors(self) -> None:
        drift = run()
        image, relu = (part(drift, PartKind.ACTIVATION, name) for name in ("x", "y"))
        assert image.local_db == pytest.approx(db(X, X_Q), abs=1e-3)
        assert (image.arriving_db, image.accumulated_db) == (math.inf, image.local_db)
        assert (image.source, image.drop_db) == (None, None)
        assert relu.local_db == pytest.approx(db(Y, rounded(Y, SY)), abs=1e-3)
        assert relu.arriving_db == pytest.approx(db(Y, Y_ARRIVING), abs=1e-3)
        assert relu.accumulated_db == pytest.approx(db(Y, Y_Q), abs=1e-3)
        assert (relu.source, relu.via, relu.layer) == ("x", "first", "relu")
        assert relu.drop_db == pytest.approx(db(X, X_Q) - db(Y, Y_Q), abs=1e-3)

    def test_layers(self) -> None:
        drift = run()
        first, second = part(drift, PartKind.LAYER, "m1"), part(drift, PartKind.LAYER, "out")
        exact = X @ W1.astype(np.float64)
        assert first.local_db == pytest.approx(db(exact, X_Q @ W1_Q), abs=1e-3)
        assert second.local_db == pytest.approx(db(OUT, rounded(Y, SY) @ W2_Q + B2), abs=1e-3)
        assert second.accumulated_db == pytest.approx(db(OUT, OUT_Q), abs=1e-3)

    def test_weights(self) -> None:
        drift = run()
        assert [one.tensor for one in drift.of_kind(PartKind.WEIGHT)] == ["w1", "w2"]
        weight = part(drift, PartKind.WEIGHT, "w2")
        assert weight.local_db == pytest.approx(db(W2.astype(np.float64), W2_Q), abs=1e-3)
        assert weight.layer == "second"

    def test_the_output(self) -> None:
        drift = run()
        output = part(drift, PartKind.OUTPUT, "out")
        assert output.accumulated_db == pytest.approx(db(OUT, OUT_Q), abs=1e-3)
        assert (output.source, output.local_db) == ("y", None)

    def test_the_order_is_the_graphs(self) -> None:
        assert [(one.kind.value, one.tensor) for one in run().parts] == [
            ("activation", "x"), ("layer", "m1"), ("activation", "y"), ("layer", "out"), ("output", "out"),
        ]  # fmt: skip

    def test_most_is_lost_where_the_scale_is_coarse(self) -> None:
        drift = run()
        assert drift.worst == "y"
        before, after = db(X, X_Q), db(Y, Y_Q)
        assert drift.finding.startswith(f"most is lost at first: {before:.1f} -> {after:.1f} dB, from 'x' to 'y'")

    def test_groups_do_not_matter(self) -> None:
        assert run(group_values=1).to_json() == run().to_json()

    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_fixed_batch(self, batch: int) -> None:
        drift = run(model(quantized=False, batch=batch), model(quantized=True, batch=batch))
        for one, two in zip(drift.parts, run().parts, strict=True):
            assert one.accumulated_db == pytest.approx(two.accumulated_db, abs=1e-4)

    def test_round_trip(self, tmp_path: Path) -> None:
        drift = run()
        (tmp_path / "layers.json").write_text(drift.to_json())
        assert LayerDrift.load(tmp_path / "layers.json") == drift


class TestBadInput:
    def test_nan_is_found_where_it_begins(self) -> None:
        quantized = model(quantized=True)
        scales = {tensor.name: tensor for tensor in quantized.proto.graph.initializer}
        scales["s1"].CopyFrom(numpy_helper.from_array(np.float32(np.nan), "s1"))
        drift = run(None, quantized)
        assert drift.worst == "m1"
        assert drift.finding.startswith("values stop being finite at first: 24 of tensor 'm1'")
        assert part(drift, PartKind.ACTIVATION, "y").non_finite, "though codes of integers are finite"
        assert part(drift, PartKind.LAYER, "m1").accumulated_db == -math.inf
        assert part(drift, PartKind.WEIGHT, "w1").local_db == -math.inf
        assert '"-inf"' in drift.to_json()

    def test_another_shape(self) -> None:
        other = model(quantized=False)
        other.proto.graph.node[2].output[0] = "half"
        other.proto.graph.node.append(helper.make_node("Concat", ["half", "half"], ["out"], name="join", axis=1))
        other.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
        with pytest.raises(MeasurementError, match="tensor 'out' has another shape in the quantized graph") as caught:
            run(other)
        assert (caught.value.got, caught.value.expected) == ((1, 4), (1, 8))

    def test_a_weight_that_does_not_fit_is_refused_by_name(self) -> None:
        quantized = model(quantized=True)
        index = next(i for i, t in enumerate(quantized.proto.graph.initializer) if t.name == "w2q")
        quantized.proto.graph.initializer[index].CopyFrom(numpy_helper.from_array(np.zeros((5, 4), np.int8), "w2q"))
        with pytest.raises(MeasurementError, match="cannot run model g") as caught:
            run(None, quantized)
        assert "twin/second" in str(caught.value.got)

    def test_other_names(self) -> None:
        other = model(quantized=False)
        other.proto.graph.input[0].name = "image"
        other.proto.graph.node[0].input[0] = "image"
        other.proto.graph.node[0].output[0] = other.proto.graph.node[1].input[0] = "n1"
        other.proto.graph.node[1].output[0] = other.proto.graph.node[2].input[0] = "z1"
        with pytest.raises(EngineMismatch, match="no quantized tensor"):
            run(other)

    def test_a_sample_that_does_not_fit_is_named(self) -> None:
        data = MemoryData(ROWS[:, :3], [None] * 6)
        with pytest.raises(MeasurementError, match="the graph failed on sample 's0'"):
            layer_drift(model(quantized=False), model(quantized=True), "v", data, 1, Silent())

    def test_no_samples(self) -> None:
        with pytest.raises(DataError, match="no samples"):
            layer_drift(model(quantized=False), model(quantized=True), "v", MemoryData(ROWS[:0], []), 1, Silent())


class TestWorst:
    def test_error_counts_as_a_share_of_the_signal(self) -> None:
        """From 50 to 27 dB a five-hundredth of the signal is lost, from 20 to 15 dB a forty-sixth."""
        parts = [
            PartDrift(PartKind.ACTIVATION, "a", "a", "", 27.0, 27.0, 27.0, "x", 23.0, "conv1"),
            PartDrift(PartKind.ACTIVATION, "b", "b", "", 30.0, 16.0, 15.0, "c", 5.0, "conv2"),
            PartDrift(PartKind.LAYER, "l", "l", "Conv", 1.0, None, 1.0, "x", 49.0, "conv1"),
        ]
        worst, finding = find_worst(parts)
        assert worst == "b"
        assert finding == (
            "most is lost at conv2: 20.0 -> 15.0 dB, from 'c' to 'b'; its own rounding alone has 30.0 dB"
        )

    def test_from_exact(self) -> None:
        worst, finding = find_worst([PartDrift(PartKind.ACTIVATION, "x", "x", "", 12.0, math.inf, 12.0, via="x")])
        assert worst == "x"
        assert finding == "most is lost at x: exact -> 12.0 dB in 'x'; its own rounding alone has 12.0 dB"

    def test_nothing_is_lost(self) -> None:
        parts = [PartDrift(PartKind.ACTIVATION, "x", "x", "", math.inf, math.inf, math.inf)]
        assert find_worst(parts)[0] is None
        assert find_worst([])[0] is None

    def test_a_total_loss(self) -> None:
        """A tensor that became zero, or a constant one."""
        parts = [PartDrift(PartKind.ACTIVATION, "a", "a", "", 30.0, 0.0, -math.inf, "x", math.inf, "conv1")]
        worst, finding = find_worst(parts)
        assert worst == "a"
        assert "-inf dB" in finding


def test_weights_alone() -> None:
    """Without quantized activations there are weights, layers and the output; the worst is the worst layer's own."""
    quantized = model(quantized=True)
    nodes = [node for node in quantized.proto.graph.node if node.name not in ("x.q", "x.dq", "y.q", "y.dq")]
    for node in nodes:
        node.input[:] = [{"x_dq": "x", "y_dq": "y"}.get(name, name) for name in node.input]
    kept = [type(node)() for node in nodes]
    for copy, node in zip(kept, nodes, strict=True):
        copy.CopyFrom(node)
    del quantized.proto.graph.node[:]
    quantized.proto.graph.node.extend(kept)
    drift = run(None, quantized)
    assert [(one.kind.value, one.tensor) for one in drift.parts] == [
        ("layer", "m1"), ("layer", "out"), ("output", "out"),
    ]  # fmt: skip
    first, second = drift.of_kind(PartKind.LAYER)
    exact = X @ W1.astype(np.float64)
    assert first.local_db == pytest.approx(db(exact, X @ W1_Q), abs=1e-3)
    assert second.local_db == pytest.approx(db(OUT, Y @ W2_Q + B2), abs=1e-3)
    assert second.accumulated_db == pytest.approx(db(OUT, np.maximum(X @ W1_Q, 0) @ W2_Q + B2), abs=1e-3)
    worst = min((first, second), key=lambda one: one.local_db or 0.0)
    assert drift.worst == worst.tensor
    assert (
        drift.finding == f"most is lost at {worst.layer}: its own weights leave {worst.local_db:.1f} dB of exact inputs"
    )
