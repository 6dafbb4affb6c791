from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from engine_data import prepared_cnn, variant
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantlab.engines import emulation
from quantlab.engines.emulation import FLOAT32_REFERENCE, FP32, MAX_VALUES, OWN, TRUTH, stride
from quantlab.engines.onnxruntime import variant_graph
from quantlab.engines.probe import Probe, load_probe, make_probe, prepared_probe, probe_of, probe_path, save_probe
from quantlab.errors import ConfigError, EngineMismatch, ModelError
from quantlab.graph.double import open_double
from quantlab.graph.model import Model, open_session
from quantlab.precision import Precision


@pytest.fixture(scope="module")
def model() -> Model:
    return prepared_cnn().model


@pytest.fixture(scope="module")
def probe(model: Model) -> Probe:
    return make_probe(model, None, threads=1)


def graph(nodes: list[object], inputs: list[object], outputs: list[object], stored: list[object] = []) -> Model:  # noqa: B006
    made = helper.make_graph(nodes, "test", inputs, outputs, stored)
    return Model.of(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_holds_inputs_truth_and_every_arithmetic(model: Model, probe: Probe) -> None:
    assert set(probe.inputs) == {"image", "side"}
    assert probe.inputs["image"].shape == (probe.calls, 1, 3, 8, 8)  # the dynamic batch is 1
    assert probe.sizes == {"scores": 6}
    assert probe.reference == "float64"
    assert probe.notes == ()
    assert set(probe.expected) == {
        "truth", "fp32", "fp32-unfused", "tf32", "tf32-truncated", "tf32-aligned", "tf32-narrow-cut",
        "fp16", "fp16-float-tail", "fp16-weights", "bf16",
        "bf16-float-tail", "bf16-weights",
    }  # fmt: skip
    session = open_double(model)
    for i, feed in enumerate(probe.feeds()):
        np.testing.assert_array_equal(probe.expected[TRUTH][i], session.run(feed)["scores"].ravel())


def test_is_called_more_often_if_outputs_are_few(model: Model, probe: Probe) -> None:
    assert probe.calls == 32  # at most, and 6 values a call
    shapes = {"image": (10, 3, 8, 8), "side": (10, 4)}
    assert make_probe(model, None, threads=1, input_shapes=shapes).calls == 5  # 300 of at least 256 values
    assert make_probe(model, None, threads=1, input_shapes=shapes, samples=7).calls == 7


def test_is_the_same_for_one_seed_and_another_for_another(model: Model, probe: Probe) -> None:
    again, other = make_probe(model, None, threads=1), make_probe(model, None, threads=1, seed=1)
    np.testing.assert_array_equal(again.inputs["image"], probe.inputs["image"])
    np.testing.assert_array_equal(again.expected[TRUTH], probe.expected[TRUTH])
    assert not np.array_equal(other.inputs["image"], probe.inputs["image"])


def test_takes_the_shapes_that_the_engine_takes(model: Model) -> None:
    made = make_probe(model, None, input_shapes={"image": (4, 3, 8, 8), "side": (4, 4)}, threads=1)
    assert made.inputs["side"].shape[1:] == (4, 4)
    assert made.sizes == {"scores": 24}
    with pytest.raises(ConfigError, match="contradicts"):
        make_probe(model, None, input_shapes={"image": (4, 1, 8, 8)}, threads=1)


def test_run_calls_an_engine_once_a_sample(model: Model, probe: Probe) -> None:
    session = open_session(model, threads=1)
    calls = []

    def run(feed: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        calls.append(feed)
        return dict(zip(["scores"], session.run(None, feed), strict=True))

    outputs = probe.run(run)  # type: ignore[arg-type]
    assert len(calls) == probe.calls
    assert outputs["scores"].shape == (probe.calls, 1, 6)
    np.testing.assert_array_equal(outputs["scores"].reshape(probe.calls, 6), probe.expected[FP32])


@pytest.mark.parametrize(("outputs", "message"), [
    ({}, "has no output 'scores'"), ({"scores": np.zeros((1, 5))}, "'scores' of the engine has another size"),
])  # fmt: skip
def test_run_refuses_outputs_that_are_not_the_models(
    probe: Probe, outputs: dict[str, NDArray[np.generic]], message: str
) -> None:
    with pytest.raises(EngineMismatch, match=message):
        probe.run(lambda feed: outputs)


def test_own_graph_is_run_as_it_is_written() -> None:
    prepared = prepared_cnn()
    own = variant_graph(variant(prepared, Precision.INT8)).proto
    made = make_probe(prepared.model, own, threads=1)
    assert made.own_precision is Precision.INT8
    session = open_session(prepared.model.with_proto(own), threads=1, config={"session.disable_quant_qdq": "1"})
    written = np.stack([session.run(None, feed)[0].ravel() for feed in made.feeds()])
    step = np.linalg.norm(made.expected[OWN] - made.expected[TRUTH])
    assert np.linalg.norm(made.expected[OWN] - written) < 0.05 * step


def test_own_graph_that_says_nothing_is_left_out(model: Model) -> None:
    made = make_probe(model, model.proto, threads=1)
    assert OWN not in made.expected
    assert made.own_precision is None


def test_variants_of_one_graph_share_what_they_can() -> None:
    """The same values as each by itself, computed once; another graph or shape has its own."""
    prepared = prepared_cnn()
    own = variant_graph(variant(prepared, Precision.INT8)).proto
    plain = prepared_probe(prepared, None, threads=1)
    quantized, alone = prepared_probe(prepared, own, threads=1), make_probe(prepared.model, own, threads=1)
    assert plain.own_precision is None
    assert OWN not in plain.expected
    assert quantized.own_precision is Precision.INT8
    assert quantized.expected[TRUTH] is plain.expected[TRUTH]
    assert quantized.expected.keys() == alone.expected.keys()
    for name, values in alone.expected.items():
        np.testing.assert_array_equal(quantized.expected[name], values)
    shapes = {"image": (10, 3, 8, 8), "side": (10, 4)}
    assert prepared_probe(prepared, None, threads=1, input_shapes=shapes).calls == 5
    other = dataclasses.replace(prepared, graph_sha256="0" * 64)
    assert prepared_probe(other, None, threads=1).expected[TRUTH] is not plain.expected[TRUTH]


def test_many_values_are_thinned_evenly() -> None:
    value = helper.make_tensor_value_info
    upscaled = graph(
        [helper.make_node("Resize", ["x", "", "", "size"], ["y"], name="up", mode="nearest")],
        [value("x", TensorProto.FLOAT, [1, 1, 8, 8])], [value("y", TensorProto.FLOAT, [1, 1, 400, 400])],
        [numpy_helper.from_array(np.array([1, 1, 400, 400]), "size")],
    )  # fmt: skip
    made = make_probe(upscaled, None, threads=1)
    assert made.sizes == {"y": 160_000}
    assert stride(160_000, made.calls) == 4
    assert made.expected[TRUTH].shape == (2, 40_000)
    assert made.expected[TRUTH].size <= MAX_VALUES
    whole = {"y": np.arange(160_000.0).reshape(1, 1, 400, 400)}
    np.testing.assert_array_equal(made.kept(whole), np.arange(0.0, 160_000.0, 4.0))


def test_whole_numbers_are_not_compared() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("ArgMax", ["x"], ["best"], axis=1), helper.make_node("Exp", ["x"], ["y"])]
    x = value("x", TensorProto.FLOAT, ["n", 8])
    both = graph(nodes, [x], [value("best", TensorProto.INT64, None), value("y", TensorProto.FLOAT, None)])
    assert make_probe(both, None, threads=1).sizes == {"y": 8}
    alone = graph(nodes[:1], [x], [value("best", TensorProto.INT64, None)])
    with pytest.raises(ModelError, match="no floating-point outputs") as caught:
        make_probe(alone, None, threads=1)
    assert "best (int64)" in str(caught.value)


def test_unknown_shapes_are_refused() -> None:
    value = helper.make_tensor_value_info
    model = graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", "w"])], [value("y", TensorProto.FLOAT, ["n", "w"])],
    )  # fmt: skip
    with pytest.raises(ModelError, match="not known"):
        make_probe(model, None, threads=1)


def random_like() -> Model:
    """Float64 cannot be had of it, and float32 only where the operator is multiplied by nothing."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="noise"),
        helper.make_node("Mul", ["noise", "zero"], ["nothing"]),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="m"),
        helper.make_node("Add", ["m", "nothing"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    stored = [numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(w, "w")]
    x = value("x", TensorProto.FLOAT, ["n", 64])
    return graph(nodes, [x], [value("y", TensorProto.FLOAT, ["n", 64])], stored)


def test_float32_stands_in_where_float64_cannot_be_had() -> None:
    made = make_probe(random_like(), None, threads=1)
    assert made.reference == FLOAT32_REFERENCE
    assert "tf32-truncated" not in made.expected
    assert made.notes == (
        "truth could not be emulated: the graph does not run in float64: operator RandomNormalLike (noise)",
    )


def test_float64_that_is_nonsense_is_not_used(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the evaluator must not become the truth: here it forgets a factor."""

    class Wrong:
        def __init__(self, model: Model, *_: object) -> None:
            self.session = open_double(model)

        def run(self, feed: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            return {name: value * 1.01 for name, value in self.session.run(feed).items()}  # type: ignore[operator]

    monkeypatch.setattr(emulation, "open_double", Wrong)
    made = make_probe(model, None, threads=1)
    assert made.reference == FLOAT32_REFERENCE
    assert made.notes == ("float64 differs from float32 by more than rounding explains and was not used",)


def test_file_keeps_everything(probe: Probe, tmp_path: Path) -> None:
    path = probe_path(tmp_path / "tensorrt-fp16+1excl.engine")
    assert path.name == "tensorrt-fp16+1excl.probe.npz"
    save_probe(path, probe)
    read = load_probe(path)
    assert (read.sizes, read.reference, read.own_precision, read.notes) == (
        probe.sizes, probe.reference, probe.own_precision, probe.notes,
    )  # fmt: skip
    np.testing.assert_array_equal(read.expected[TRUTH], probe.expected[TRUTH])
    for name, values in probe.expected.items():
        np.testing.assert_array_equal(read.expected[name].astype(np.float32), values.astype(np.float32))
    for name, inputs in probe.inputs.items():
        np.testing.assert_array_equal(read.inputs[name], inputs)
        assert read.inputs[name].dtype == inputs.dtype


def test_file_keeps_inputs_that_numpy_does_not_know(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Cast", ["x/0"], ["f"], to=TensorProto.FLOAT), helper.make_node("Exp", ["f"], ["y"])]
    model = graph(nodes, [value("x/0", TensorProto.BFLOAT16, [1, 8])], [value("y", TensorProto.FLOAT, [1, 8])])
    feeds = [{"x/0": np.arange(8, dtype=np.float32).reshape(1, 8)}]
    made = probe_of(graph([helper.make_node("Exp", ["x/0"], ["y"])], [value("x/0", TensorProto.FLOAT, [1, 8])],
                          [value("y", TensorProto.FLOAT, [1, 8])]), None, feeds, threads=1)  # fmt: skip
    import ml_dtypes

    half = Probe({"x/0": made.inputs["x/0"].astype(ml_dtypes.bfloat16)}, made.sizes, made.expected, made.reference,
                 Precision.BF16, ())  # fmt: skip
    save_probe(tmp_path / "a.probe.npz", half)
    read = load_probe(tmp_path / "a.probe.npz")
    assert read.inputs["x/0"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.inputs["x/0"], half.inputs["x/0"])
    assert read.own_precision is Precision.BF16
    assert model.proto.graph.input[0].name == "x/0"


def rewritten(source: Path, target: Path, **changes: NDArray[np.generic] | None) -> Path:
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    for name, array in changes.items():
        key = name.replace("__", ".")
        if array is None:
            del arrays[key]
        else:
            arrays[key] = array
    np.savez(target, **arrays)
    return target


def test_damaged_files_are_refused(probe: Probe, tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    save_probe(good, probe)
    meta = json.loads(np.load(good)["meta"].tobytes())
    later = np.frombuffer(json.dumps({**meta, "schema": "quantlab.probe/9"}).encode(), np.uint8)
    (tmp_path / "short.npz").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "text.npz").write_text("no probe")
    (tmp_path / "empty.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("a.txt", "b")
    damaged = [
        tmp_path / "missing.npz", tmp_path / "short.npz", tmp_path / "text.npz", tmp_path / "empty.npz",
        tmp_path / "zip.npz", tmp_path,
        rewritten(good, tmp_path / "no-truth.npz", expected__truth=None),
        rewritten(good, tmp_path / "other.npz", expected__fp16=np.zeros((3, 3))),
        rewritten(good, tmp_path / "later.npz", meta=later),
        rewritten(good, tmp_path / "pickled.npz", meta=np.array([{"a": 1}], object)),
    ]  # fmt: skip
    for path in damaged:
        with pytest.raises(EngineMismatch) as caught:
            load_probe(path)
        assert str(path) in str(caught.value)
        assert "build the engine again" in str(caught.value)
