"""The whole of it, on small models with odd parts: steps are judged, kept or dropped, and nothing odd breaks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from small_nets import Net

from quantlab import CalibrateSettings, DataRequest, Silent, calibrate, open_data, open_model
from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets import Dataset
from quantlab.degradation import DegradationCode
from quantlab.errors import CalibrationError, ConfigError
from quantlab.graph.model import open_session, save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT, TargetProfile
from quantlab.recovery import recover as module
from quantlab.recovery.protocol import Proposal
from quantlab.recovery.recover import STEP_NAMES, Recovered, RecoverSettings, parse_steps, recover

Made = tuple[Prepared, Dataset, CalibrationTable]


def _prepare(folder: Path, proto: ModelProto, n: int = 48, shape: tuple[int, ...] = (3, 8, 8)) -> Made:
    save_model(proto, folder / "net.onnx", None)
    np.savez(folder / "data.npz", x=np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32))
    prepared = open_model(folder / "net.onnx", {}, Silent())
    dataset, preprocess = open_data(prepared.model, DataRequest(str(folder / "data.npz")), Silent())
    table, _ = calibrate(prepared, dataset, preprocess, CalibrateSettings("mse", 99.99, 2, TENSORRT), Silent())
    return prepared, dataset, table


def _recover(made: Made, steps: str, target: TargetProfile = TENSORRT, folder: Path | None = None) -> Recovered:
    return recover(*made, RecoverSettings(parse_steps(steps), target, 2, folder=folder), Silent())


def _outputs(made: Made, recovered: Recovered, target: TargetProfile = TENSORRT) -> NDArray[np.float32]:
    proto = recovered.state.quantized(target).proto
    session = open_session(recovered.state.model.with_proto(proto), threads=1)
    rows = np.stack([sample.inputs["x"] for sample in made[1]])
    size = made[0].fixed_batch or len(rows)
    return np.concatenate([session.run(None, {"x": rows[i : i + size]})[0] for i in range(0, len(rows), size)])


def _chain(net: Net) -> str:
    """Conv, Relu, depthwise Conv, Clip, strided grouped Conv, Relu, pooled, Gemm; wide enough for every target."""
    x = net.add("Relu", net.add("Conv", "x", net.normal(16, 3, 3, 3), net.normal(16), pads=[1, 1, 1, 1]))
    x = net.add("Conv", x, net.normal(16, 1, 3, 3), net.normal(16), group=16, pads=[1, 1, 1, 1])
    x = net.add("Clip", x, net.const(0.0), net.const(6.0))
    x = net.add("Relu", net.add("Conv", x, net.normal(32, 8, 3, 3), group=2, strides=[2, 2], dilations=[1, 1]))
    return net.add("Gemm", net.add("Flatten", net.add("GlobalAveragePool", x)), net.normal(16, 32), transB=1)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    net = Net(3, 8, 8)
    return _prepare(tmp_path_factory.mktemp("chain"), net.model(_chain(net)), 256)


@pytest.mark.parametrize("target", [TENSORRT, ONNXRUNTIME], ids=lambda target: target.name)
def test_rounding_gains_on_samples_that_it_has_not_seen(chain: Made, target: TargetProfile) -> None:
    found = _recover(chain, "round", target)
    (step,) = found.record.steps
    assert step.kept
    assert step.before_db is not None
    assert step.after_db is not None
    assert step.after_db > step.before_db + 0.3
    assert step.change_db is not None
    assert step.change_db.low <= step.after_db - step.before_db <= step.change_db.high
    assert found.record.end_db == pytest.approx(step.after_db)
    assert found.record.n_check == 64
    assert found.record.n_fit == 192
    assert found.state.target is not None
    assert len(found.state.rounded) == 4


def test_the_same_result_to_the_last_bit(chain: Made, tmp_path: Path) -> None:
    """Order, names and batches of the samples are not looked at; hashes of their contents are."""
    prepared, dataset, table = chain
    rows = np.stack([sample.inputs["x"] for sample in dataset])
    np.savez(tmp_path / "turned.npz", x=rows[::-1])
    turned, _ = open_data(prepared.model, DataRequest(str(tmp_path / "turned.npz")), Silent())
    one = _recover(chain, "bias,round")
    other = _recover((prepared, turned, table), "bias,round")
    assert one.state.rounded.keys() == other.state.rounded.keys()
    for name, weight in one.state.rounded.items():
        np.testing.assert_array_equal(weight.codes, other.state.rounded[name].codes)
        np.testing.assert_array_equal(weight.scales, other.state.rounded[name].scales)
    np.testing.assert_array_equal(_outputs(chain, one), _outputs(chain, other))


def test_an_interrupted_run_goes_on(chain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _recover(chain, "bias,round")
    settled: list[str] = []
    layer = module.Round._settled

    def interrupted(self: Any, spot: Any, state: Any, walk: Any) -> Any:
        if len(settled) == 2:
            raise KeyboardInterrupt
        settled.append(spot.name)
        return layer(self, spot, state, walk)

    monkeypatch.setattr(module.Round, "_settled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _recover(chain, "bias,round", folder=tmp_path)
    assert len(list(tmp_path.rglob("round-*.npz"))) == 2

    def counted(self: Any, spot: Any, state: Any, walk: Any) -> Any:
        settled.append(spot.name)
        return layer(self, spot, state, walk)

    settled.clear()
    monkeypatch.setattr(module.Round, "_settled", counted)
    found = _recover(chain, "bias,round", folder=tmp_path)
    assert len(settled) == 2, "finished layers are not made again"
    assert [step.name for step in found.record.steps] == ["round", "bias"]
    for name, weight in whole.state.rounded.items():
        np.testing.assert_array_equal(weight.codes, found.state.rounded[name].codes)
    np.testing.assert_array_equal(_outputs(chain, whole), _outputs(chain, found))
    settled.clear()
    _recover(chain, "bias,round", folder=tmp_path)
    assert not settled, "finished steps are not made again"
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(b"damaged")
    _recover(chain, "bias,round", folder=tmp_path)
    assert len(settled) == 4, "what is damaged is made again"


def _shared(net: Net) -> str:
    weight = net.normal(16, 16, 1, 1)
    x = net.add("Relu", net.add("Conv", "x", net.normal(16, 3, 1, 1)))
    x = net.add("Relu", net.add("Conv", x, weight))
    return net.add("Conv", net.add("Relu", net.add("Conv", x, weight)), net.normal(16, 16, 1, 1))


def _dead(net: Net) -> str:
    weight = net.rng.standard_normal((16, 3, 3, 3))
    weight[3:7] = 0.0
    x = net.add("Relu", net.add("Conv", "x", net.const(weight), net.const(np.zeros(16))))
    second = net.rng.standard_normal((16, 16, 1, 1))
    second[2] = 0.0
    return net.add("Conv", x, net.const(second))


def _silent(net: Net) -> str:
    """A layer whose input is zero for every sample, beside one that works."""
    x = net.add("Conv", "x", net.normal(16, 3, 1, 1))
    nothing = net.add("Relu", net.add("Conv", x, net.const(np.zeros((16, 16, 1, 1))), net.const(-np.ones(16))))
    return net.add(
        "Add", net.add("Conv", nothing, net.normal(16, 16, 1, 1)), net.add("Conv", x, net.normal(16, 16, 1, 1))
    )


def _computed(net: Net) -> str:
    """A weight that is computed from the input."""
    x = net.add("Conv", "x", net.normal(16, 3, 1, 1))
    kernel = net.add("Reshape", net.add("ReduceMean", x, axes=[0, 2, 3]), net.const([16, 1, 1, 1], np.int64))
    return net.add("Conv", x, kernel, group=16)


def _transposed(net: Net) -> str:
    x = net.add("Relu", net.add("ConvTranspose", "x", net.normal(3, 16, 3, 3), strides=[2, 2], group=1))
    x = net.add("ConvTranspose", x, net.normal(16, 8, 2, 2), net.normal(16), group=2)
    rows = net.add("Reshape", net.add("GlobalAveragePool", x), net.const([-1, 16], np.int64))
    return net.add("Add", net.add("MatMul", rows, net.normal(16, 16)), net.normal(16))


def _collinear(net: Net) -> str:
    """Sixteen channels that are all multiples of one: Hessians of rank one."""
    column = np.outer(np.linspace(-1, 1, 16), [1.0, 0.5, -0.25]).reshape(16, 3, 1, 1)
    return net.add("Conv", net.add("Conv", "x", net.const(column)), net.normal(16, 16, 3, 3))


@pytest.mark.parametrize("build", [_shared, _dead, _silent, _computed, _transposed, _collinear])
@pytest.mark.parametrize("target", [TENSORRT, ONNXRUNTIME], ids=lambda target: target.name)
def test_odd_models(build: Callable[[Net], str], target: TargetProfile, tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    made = _prepare(tmp_path, net.model(build(net)))
    found = _recover(made, "default", target)
    assert np.isfinite(_outputs(made, found, target)).all()
    assert found.record.end_db >= found.record.start_db
    assert [step.name for step in found.record.steps] == list(STEP_NAMES)


def test_a_shared_weight_keeps_its_nearest_codes(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    found = _recover(_prepare(tmp_path, net.model(_shared(net))), "round")
    assert sum("another node" in note for note in found.record.steps[0].notes) == 2


@pytest.mark.parametrize("n", [1, 7])
def test_too_few_samples(n: int, tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    made = _prepare(tmp_path, net.model(_chain(net)), n)
    found = _recover(made, "default")
    assert found.state.model is made[0].model
    assert [d.code for d in found.degradations] == [DegradationCode.RECOVERY_NOT_RUN]
    assert all(str(n) in step.notes[0] and not step.kept for step in found.record.steps)


def test_a_step_that_hurts_is_dropped(chain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias that is wrong by far, proposed with confidence, does not pass."""
    propose = module.Bias.propose

    def wrong(self: Any, state: Any, context: Any) -> Any:
        found = propose(self, state, context)
        (proposal,) = found.proposals
        proto = ModelProto()
        proto.CopyFrom(proposal.state.model.proto)
        for tensor in proto.graph.initializer:
            if "recovered" in tensor.name:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1), tensor.name))
        return replace(found, proposals=[Proposal.of("", proposal.state.with_proto(proto), proposal.changed)])

    monkeypatch.setattr(module.Bias, "propose", wrong)
    found = _recover(chain, "bias")
    assert not found.record.steps[0].kept
    assert "dropped" in found.record.steps[0].notes[-1]
    assert found.state.model is chain[0].model
    assert found.record.end_db == found.record.start_db


def test_a_model_that_is_quantized_already(chain: Made, tmp_path: Path) -> None:
    prepared, dataset, table = chain
    quantized = replace(
        prepared, model=prepared.model.with_proto(_recover(chain, "none").state.quantized(TENSORRT).proto)
    )
    with pytest.raises(ConfigError, match="cannot be recovered"):
        recover(quantized, dataset, table, RecoverSettings(("round",), TENSORRT, 1), Silent())


def test_a_model_without_float_outputs(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    out = net.add("ArgMax", _chain(net), axis=1)
    proto = net.model(out)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info(out, 7, None))
    with pytest.raises(CalibrationError, match="no output to measure at"):
        _recover(_prepare(tmp_path, proto), "round")


def test_the_diagnosis_splits_the_loss(chain: Made) -> None:
    diagnosis = _recover(chain, "round").record.diagnosis
    assert diagnosis is not None
    assert diagnosis.whole_db < min(diagnosis.weights_db, diagnosis.activations_db)
    for kind in ("weight", "activation"):
        assert sum(layer.share for layer in diagnosis.layers if layer.kind == kind) == pytest.approx(1.0)
    noise = 10 ** (-diagnosis.weights_db / 10) + 10 ** (-diagnosis.activations_db / 10)
    assert -10 * np.log10(noise) == pytest.approx(diagnosis.whole_db, abs=1.5)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("default", STEP_NAMES), ("none", ()), ("bias,round", ("round", "bias")), (" round ", ("round",))],
)
def test_steps_by_name(text: str, steps: tuple[str, ...]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "rounds", "round,", "default,round"])
def test_steps_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="no recovery step"):
        parse_steps(text)


@pytest.mark.parametrize("shape", [(1, 16), (1,)], ids=["row", "scalar"])
def test_a_bias_that_is_no_vector_is_not_learned_into_the_weight(shape: tuple[int, ...], tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    x = net.add("Flatten", net.add("Relu", net.add("Conv", "x", net.normal(16, 3, 3, 3))))
    out = net.add("Gemm", x, net.normal(576, 16), net.const(np.full(shape, 5.0)))
    found = _recover(_prepare(tmp_path, net.model(out)), "round")
    (step,) = found.record.steps
    assert any("attributes or shapes" in note for note in step.notes)
    assert step.changed == ("Conv_0",)


def test_an_output_that_nothing_quantized_reaches_hides_no_gain(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    out = _chain(net)
    exact = net.add("Mul", "x", net.const(2.0))
    found = _recover(_prepare(tmp_path, net.model(out, exact), 256), "round")
    assert found.record.steps[0].kept
    assert np.isfinite(found.record.end_db)


def test_a_dead_channel_leaves_the_other_groups_their_scale(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    weight = net.rng.standard_normal((16, 1, 3, 3))
    weight[5] = 0.0
    x = net.add("Relu", net.add("Conv", "x", net.normal(16, 3, 1, 1)))
    out = net.add("ConvTranspose", x, net.const(weight), group=16)
    made = _prepare(tmp_path, net.model(out))
    found = _recover(made, "round")
    rounded = next(weight for weight in found.state.rounded.values() if weight.codes.shape == (16, 1, 3, 3))
    assert rounded.scales.max() < 0.1
    assert np.abs(rounded.values() - weight).max() < 2 * rounded.scales.max() + 0.3


def test_folders_of_others_are_left(chain: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / ("a" * 24) / "layers").mkdir(parents=True)
    _recover(chain, "bias", folder=tmp_path)
    assert (tmp_path / "thesis").is_dir()
    assert not (tmp_path / ("a" * 24)).exists(), "an earlier recovery's, by its name and what is in it"


def test_a_fixed_batch_is_filled_with_different_samples(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    proto = net.model(_chain(net))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    made = _prepare(tmp_path, proto, 256)
    found = _recover(made, "round")
    assert made[0].fixed_batch == 5
    assert found.record.steps[0].kept
