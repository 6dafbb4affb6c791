from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

from quantlab.errors import ModelError
from quantlab.graph.model import load_model, open_session, save_model, tensor_array
from quantlab.graph.prepare import prepare
from quantlab.graph.storage import ALIGNMENT_BYTES, write_proto


def _edit(path, key, value):
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(proto.SerializeToString())


def test_weights_stay_in_their_file(build, save_external, run):
    proto = build.mlp()
    x = build.rng.standard_normal((2, 8)).astype(np.float32)
    expected = run(proto, {"x": x})[0]
    path = save_external(proto)
    model = load_model(path)
    assert model.data_folder == path.parent
    assert len(model.proto.SerializeToString()) < 1200
    weight = tensor_array(model, model.proto.graph.initializer[0])
    assert isinstance(weight.base, np.memmap) or isinstance(weight, np.memmap)
    assert np.array_equal(run(model, {"x": x})[0], expected)


def test_hash_covers_the_data(build, save_external):
    path = save_external(build.mlp())
    before = load_model(path).sha256
    data = path.with_name("external.data")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert load_model(path).sha256 != before


def test_session_works_from_another_folder(build, save_external, tmp_path, monkeypatch):
    model = load_model(save_external(build.mlp()))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_session(model, threads=1).get_inputs()[0].name == "x"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("../external.data", "'..'"),
        ("a/../../external.data", "'..'"),
        ("..\\external.data", "'..'"),
        ("C:\\external.data", "absolute"),
        ("\\\\server\\share", "absolute"),
    ],
)
def test_paths_that_escape_are_refused(build, save_external, location, reason):
    path = save_external(build.mlp())
    _edit(path, "location", location)
    with pytest.raises(ModelError, match="leaves the model's folder") as error:
        load_model(path)
    assert reason in str(error.value.got)


def test_symbolic_links_out_of_the_folder_are_refused(build, save_external, tmp_path_factory):
    path = save_external(build.mlp())
    data = path.with_name("external.data")
    outside = tmp_path_factory.mktemp("outside") / "external.data"
    data.rename(outside)
    data.symlink_to(outside)
    with pytest.raises(ModelError, match="leaves the model's folder") as error:
        load_model(path)
    assert "symbolic link" in str(error.value.got)


def test_symbolic_links_within_the_folder_are_fine(build, save_external):
    path = save_external(build.mlp())
    data = path.with_name("external.data")
    data.rename(path.with_name("blob"))
    data.symlink_to("blob")
    assert load_model(path).data_folder == path.parent


def test_missing_data(build, save_external):
    path = save_external(build.mlp())
    path.with_name("external.data").rename(path.with_name("external.dta"))
    with pytest.raises(ModelError, match="does not exist") as error:
        load_model(path)
    assert "external.dta" in str(error.value.hint)


def test_truncated_data(build, save_external):
    path = save_external(build.mlp())
    data = path.with_name("external.data")
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"truncated: tensor 'w2'"):
        load_model(path)


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("offset", "x"), ("length", "7"), ("location", "")])
def test_malformed_references(build, save_external, key, value):
    path = save_external(build.mlp())
    _edit(path, key, value)
    with pytest.raises(ModelError, match="'w1'"):
        load_model(path)


def test_nan_in_external_weights(build, save_external):
    path = save_external(build.mlp())
    data = path.with_name("external.data")
    data.write_bytes(np.float32(np.nan).tobytes() + data.read_bytes()[4:])
    with pytest.raises(ModelError, match="'w1'"):
        load_model(path)


def test_external_model_is_prepared_without_loading_its_weights(build, save_external, run):
    model = load_model(save_external(build.mlp(batch=1)))
    prepared = prepare(model)
    assert prepared.fixed_batch is None
    assert not prepared.degradations
    assert all(tensor.data_location for tensor in prepared.model.proto.graph.initializer if tensor.name.startswith("w"))
    x = build.rng.standard_normal((1, 8)).astype(np.float32)
    assert np.allclose(run(prepared.model, {"x": x})[0], run(model, {"x": x})[0], atol=1e-6)


def test_save_inlines_external_data(build, save_external, tmp_path, run):
    model = load_model(save_external(build.mlp()))
    target = tmp_path / "out" / "inline.onnx"
    assert save_model(model.proto, target, model) == (target,)
    again = load_model(target)
    assert again.data_folder is None
    x = build.rng.standard_normal((2, 8)).astype(np.float32)
    assert np.array_equal(run(again, {"x": x})[0], run(model, {"x": x})[0])
    assert model.proto.graph.initializer[0].data_location  # the source was not changed


@pytest.mark.parametrize("external", [False, True])
def test_large_models_are_streamed_beside_the_file(build, save, save_external, tmp_path, run, external):
    source = build.cnn()
    model = load_model(save_external(source) if external else save(source))
    target = tmp_path / "out" / "large.onnx"
    files = write_proto(model.proto, target, model.data_folder, inline_limit_bytes=3000)
    assert [file.name for file in files] == ["large.onnx", "large.onnx.data"]
    assert sorted(entry.name for entry in target.parent.iterdir()) == ["large.onnx", "large.onnx.data"]
    again = load_model(target)
    moved = [t for t in again.proto.graph.initializer if t.data_location]
    assert moved
    for tensor in moved:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert int(entries["offset"]) % ALIGNMENT_BYTES == 0
    assert [t.name for t in again.proto.graph.initializer] == [t.name for t in source.graph.initializer]
    x = build.rng.standard_normal((2, 3, 12, 12)).astype(np.float32)
    assert np.array_equal(run(again, {"x": x})[0], run(source, {"x": x})[0])


def test_saving_over_the_source_keeps_it_readable(build, save_external, run):
    path = save_external(build.mlp())
    model = load_model(path)
    x = build.rng.standard_normal((2, 8)).astype(np.float32)
    expected = run(model, {"x": x})[0]
    save_model(model.proto, path, model)
    assert np.array_equal(run(load_model(path), {"x": x})[0], expected)


def test_failed_save_leaves_nothing(build, save_external, tmp_path):
    path = save_external(build.mlp())
    model = load_model(path)
    path.with_name("external.data").unlink()
    target = tmp_path / "out" / "broken.onnx"
    with pytest.raises(ModelError):
        write_proto(model.proto, target, model.data_folder, inline_limit_bytes=100)
    assert not target.parent.exists() or not list(target.parent.iterdir())
