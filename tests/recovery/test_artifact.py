"""A recovered model on disk: round trip, weights in a file beside it, and what it is bound to."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import recovered_model
from onnx import numpy_helper

from quantlab import (
    TARGETS,
    CalibrateSettings,
    DataRequest,
    RecoverSettings,
    calibrate,
    open_data,
    open_model,
    write_calibration,
)
from quantlab.calibrators import CalibrationTable
from quantlab.documents import canonical_sha256
from quantlab.engines.artifact import quantized_graph
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.variant import Variant
from quantlab.errors import CalibrationError, ConfigError, EngineMismatch
from quantlab.graph.model import load_model, tensor_array
from quantlab.graph.prepare import Prepared
from quantlab.graph.storage import write_proto
from quantlab.precision import Precision
from quantlab.progress import Silent
from quantlab.records import to_plain
from quantlab.recovery.artifact import load_recovery, recovery_files, remove_recovery, save_recovery
from quantlab.recovery.recover import Recovered, recover
from quantlab.recovery.result import Recovery

sys.path.append(str(Path(__file__).parents[1] / "cli"))
from cli_bench import tiny_cnn

TENSORRT = TARGETS["tensorrt"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, CalibrationTable, Recovered]:
    """A model whose convolution is large enough to be stored in a file of its own, calibrated and recovered."""
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    path.write_bytes(tiny_cnn(channels=16).SerializeToString())
    prepared = open_model(path, {}, Silent())
    dataset, resolved = open_data(prepared.model, DataRequest("random:12"), Silent())
    table, _ = calibrate(prepared, dataset, resolved, CalibrateSettings("mse", 99.99, 1), Silent())
    settings = RecoverSettings(("equalize", "round"), TENSORRT, 1)
    return prepared, table, recovered_model.recover(prepared, dataset, table, settings, Silent())


def test_round_trip(made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path) -> None:
    prepared, table, recovered = made
    saved = save_recovery(tmp_path / "recovered", recovered, prepared, table, TENSORRT)
    assert Recovery.load(tmp_path / "recovered" / "recovery.json") == saved
    found = load_recovery(tmp_path / "recovered", prepared, table)
    assert (found.target, found.method, found.steps, found.sha256) == (
        "tensorrt", "mse", ("equalize", "round"), saved.sha256,
    )  # fmt: skip
    assert (found.model.path, found.model.sha256) == (prepared.model.path, prepared.model.sha256)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.model.proto.graph.initializer}
    for tensor in recovered.state.model.proto.graph.initializer:
        rounded = recovered.state.rounded.get(tensor.name)
        expected = (
            numpy_helper.to_array(tensor) if rounded is None else rounded.values()
        )  # for a layer that is excluded
        np.testing.assert_array_equal(stored[tensor.name], expected)
    assert list(found.model.proto.graph.node) == list(recovered.state.model.proto.graph.node)
    assert found.table == dataclasses.replace(recovered.state.table, recovered=("equalize", "round"))
    assert found.rounded.keys() == recovered.state.rounded.keys() == {"w1"}
    mine, theirs = found.rounded["w1"], recovered.state.rounded["w1"]
    np.testing.assert_array_equal(mine.codes, theirs.codes)
    np.testing.assert_array_equal(mine.scales, theirs.scales)
    assert mine.axis == theirs.axis == 0


def test_the_same_bytes_again(made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path) -> None:
    prepared, table, recovered = made
    for name in ("one", "two"):
        save_recovery(tmp_path / name, recovered, prepared, table, TENSORRT)
    for one, two in zip(recovery_files(tmp_path / "one"), recovery_files(tmp_path / "two"), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_weights_beside_the_model(
    made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for models of gigabytes: the graph refers to the folder of the recovery, not to that of the model."""
    prepared, table, recovered = made
    save_recovery(tmp_path / "inline", recovered, prepared, table, TENSORRT)
    monkeypatch.setattr(
        "quantlab.recovery.artifact.save_model",
        lambda proto, path, source: write_proto(proto, path, source.data_folder, inline_limit_bytes=0),
    )
    saved = save_recovery(tmp_path / "beside", recovered, prepared, table, TENSORRT)
    assert "model.onnx.data" in saved.files and (tmp_path / "beside/model.onnx.data").stat().st_size > 1024
    outputs = {}
    for name in ("inline", "beside"):
        found = load_recovery(tmp_path / name, prepared, table)
        stored = {tensor.name: tensor for tensor in found.model.proto.graph.initializer}
        assert tensor_array(found.model, stored["w1"]).shape == (8, 16, 3, 3)
        builder = OnnxRuntimeBuilder()
        variant = Variant(prepared, "onnxruntime", Precision.INT8, TENSORRT, table, recovery=found)
        engine = builder.load(builder.build(variant, tmp_path / f"{name}-engines"), 1)
        outputs[name] = engine.run({"x": np.random.default_rng(0).random((4, 16, 8, 8), np.float32)})["y"]
    np.testing.assert_array_equal(outputs["inline"], outputs["beside"])
    (tmp_path / "beside/model.onnx.data").write_bytes(b"x")
    with pytest.raises(CalibrationError, match="is not the file"):
        load_recovery(tmp_path / "beside", prepared, table)


@pytest.mark.parametrize("what", ["model", "prepared graph", "calibration table"])
def test_it_belongs_to_one_calibration_of_one_model(
    what: str, made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path
) -> None:
    prepared, table, recovered = made
    save_recovery(tmp_path / "recovered", recovered, prepared, table, TENSORRT)
    match what:
        case "model":
            prepared = dataclasses.replace(prepared, model=dataclasses.replace(prepared.model, sha256="e" * 64))
        case "prepared graph":
            prepared = dataclasses.replace(prepared, graph_sha256="e" * 64)
        case _:
            table = dataclasses.replace(table, n_samples=7)
    with pytest.raises(EngineMismatch, match=f"belongs to another {what}") as caught:
        load_recovery(tmp_path / "recovered", prepared, table)
    assert caught.value.got != caught.value.expected
    assert "--recovered ignore" in str(caught.value.hint)


def test_removal_touches_a_recovery_alone_and_takes_its_marker_last(
    made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, table, recovered = made
    folder = tmp_path / "recovered"
    folder.mkdir()
    (folder / "model.onnx").write_text("mine")
    remove_recovery(folder)
    assert (folder / "model.onnx").read_text() == "mine"
    (folder / "model.onnx").unlink()
    save_recovery(folder, recovered, prepared, table, TENSORRT)
    removed: list[str] = []
    monkeypatch.setattr("quantlab.recovery.artifact.remove_file", lambda path: removed.append(path.name))
    remove_recovery(folder)
    assert sorted(removed) == sorted(path.name for path in folder.iterdir()) and removed[-1] == "recovery.json"
    monkeypatch.undo()
    remove_recovery(folder)
    assert not folder.exists()


def test_a_failed_recovery_leaves_nothing(
    made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had written by then, and though there is no marker yet."""
    prepared, table, recovered = made

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantlab.recovery.artifact._save_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_recovery(tmp_path / "recovered", recovered, prepared, table, TENSORRT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [4, 12])
def test_a_recovery_says_what_it_was_made_for(n: int, made: tuple[Prepared, CalibrationTable, Recovered]) -> None:
    """Also where there were too few samples for a step."""
    prepared, table, _ = made
    dataset, _ = open_data(prepared.model, DataRequest(f"random:{n}"), Silent())
    settings = RecoverSettings(("bias",), TENSORRT, 1, exclude=("head",))
    recovered = recover(prepared, dataset, table, settings, Silent())
    assert bool(recovered.degradations) == (n == 4)
    assert (recovered.target, recovered.table_sha256, recovered.exclude) == ("tensorrt", table.sha256, ("head",))


@pytest.mark.parametrize("what", ["target", "calibration table"])
def test_it_is_written_for_what_it_was_made_for(
    what: str, made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path
) -> None:
    prepared, table, recovered = made
    target = TENSORRT
    if what == "target":
        target, values = TARGETS["onnxruntime"], ("onnxruntime", "tensorrt")
    else:
        original, table = table, dataclasses.replace(table, n_samples=7)
        values = (table.sha256, original.sha256)
    with pytest.raises(ConfigError, match=f"for another {what}") as caught:
        write_calibration(tmp_path / "out", prepared, table, {}, target, recovered=recovered)
    assert (caught.value.got, caught.value.expected) == values
    assert not (tmp_path / "out").exists()


def test_excluded_layers_stay_excluded(made: tuple[Prepared, CalibrationTable, Recovered], tmp_path: Path) -> None:
    """In the file that calibration writes and in engines, which name none themselves."""
    prepared, table, recovered = made
    left = dataclasses.replace(recovered, exclude=("head",))
    files = write_calibration(tmp_path, prepared, table, {}, TENSORRT, recovered=left)
    result = files.recovery()
    assert result is not None and result.exclude == ("head",)
    found = load_recovery(files.recovered, prepared, table)
    variant = Variant(prepared, "onnxruntime", Precision.INT8, TENSORRT, table, recovery=found)
    graph = quantized_graph(variant)
    assert graph.excluded == ("head",)
    assert graph.proto.graph == load_model(files.qdq).proto.graph


def test_the_hash_of_a_table_without_recovery_is_that_of_earlier_versions(
    made: tuple[Prepared, CalibrationTable, Recovered],
) -> None:
    """They knew no recovery, and engines and caches of theirs name it."""
    _, table, _ = made
    plain = to_plain(table)
    assert plain.pop("recovered") == []
    assert table.sha256 == canonical_sha256(plain)
    assert dataclasses.replace(table, recovered=("round",)).sha256 != table.sha256
