from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantlab.errors import EngineBuildError, ModelError
from quantlab.files import sha256_file
from quantlab.graph.model import (
    Model,
    has_qdq,
    load_model,
    model_inputs,
    model_outputs,
    open_session,
    tensor_array,
)


def test_loads_and_describes(build, save):
    proto = build.mlp()
    helper.set_model_props(proto, {"key": "value"})
    path = save(proto)
    model = load_model(path)
    assert (model.path, model.data_folder, model.name, model.opset) == (path, None, "model", 17)
    assert model.sha256 == sha256_file(path)
    assert model.metadata == {"key": "value"}
    (spec,) = model_inputs(model.proto)
    assert (spec.name, spec.dtype, spec.shape) == ("x", "float32", ("n", 8))
    assert model_outputs(model.proto)[0].shape == ("n", 4)
    weight = tensor_array(model, model.proto.graph.initializer[0])
    assert weight.shape == (8, 64)
    assert not weight.flags.writeable


def test_missing_names_the_near_match(build, save):
    path = save(build.mlp(), "resnet.onnx")
    with pytest.raises(ModelError, match="does not exist") as error:
        load_model(path.with_name("resnt.onnx"))
    assert "resnet.onnx" in str(error.value.hint)


def test_folder_names_a_model_in_it(build, save):
    path = save(build.mlp())
    with pytest.raises(ModelError, match="is a folder") as error:
        load_model(path.parent)
    assert "model.onnx" in str(error.value.hint)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (_zip(), "ZIP"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n", "Git LFS"),
        (b"ptrt" + bytes(100), "TensorRT engine"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite"),
        (b'{"a": 1}', "JSON"),
        (b"hello there, this is text", "text"),
        (b"\xfe\xed\xfa\xce" * 20, "unknown"),
    ],
)
def test_says_what_it_is_instead(tmp_path, content, word):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX model") as error:
        load_model(path)
    assert word in str(error.value.got)


def test_empty(tmp_path):
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ModelError, match="is empty"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated(build, save, fraction):
    path = save(build.mlp())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ModelError, match="truncated or damaged"):
        load_model(path)


def test_checker_names_the_node(build, save):
    proto = build.mlp()
    proto.graph.node[1].op_type = "Conv"
    with pytest.raises(ModelError, match="not a valid ONNX model: node 'relu'"):
        load_model(save(proto))


def test_unused_output_names_are_fine_but_doubles_are_not(build, save):
    proto = build.mlp()
    proto.graph.node[1].output[0] = "h"
    with pytest.raises(ModelError, match="tensor name 'h' twice"):
        load_model(save(proto))
    proto = build.mlp()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="weight name 'w1' twice"):
        load_model(save(proto))


def test_no_inputs(build, save):
    proto = build.model([helper.make_node("Relu", ["w"], ["y"])], [], [build.value("y", [3])], [build.weight("w", 3)])
    with pytest.raises(ModelError, match="has no inputs"):
        load_model(save(proto))


def test_versions_too_new(build, save):
    proto = build.mlp()
    proto.ir_version = onnx.IR_VERSION
    proto.opset_import[0].version = onnx.defs.onnx_opset_version()
    with pytest.raises(ModelError, match="too new for the installed onnxruntime"):
        load_model(save(proto))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(build, save, value):
    proto = build.mlp()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[2]).copy()
    weight[3, 1] = value
    proto.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(weight, "w2"))
    with pytest.raises(ModelError, match=r"'w2'.*not finite"):
        load_model(save(proto))


def test_infinite_mask_is_allowed(build, save):
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    proto = build.model(
        [helper.make_node("Add", ["x", "mask"], ["y"])],
        [build.value("x", ["n", 8, 8])],
        [build.value("y", ["n", 8, 8])],
        [build.const("mask", mask)],
    )
    assert load_model(save(proto)).size_bytes > 256


def test_nan_in_half_weights(build, save):
    proto = build.model(
        [helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"])],
        [build.value("x", [2])],
        [build.value("y", [2])],
        [build.const("w", [1, np.nan], np.float16)],
    )
    with pytest.raises(ModelError, match="1 NaN"):
        load_model(save(proto))


def test_wrong_number_of_elements_is_named(build, save):
    proto = build.mlp()
    proto.graph.initializer[2].raw_data = proto.graph.initializer[2].raw_data[:-4]
    with pytest.raises(ModelError):
        load_model(save(proto))


def test_output_that_is_no_tensor(build, save):
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    proto = build.model([helper.make_node("SequenceConstruct", ["x"], ["y"])], [build.value("x", [2])], [output])
    with pytest.raises(ModelError, match="'y' is not a tensor") as error:
        load_model(save(proto))
    assert error.value.got == "sequence"


def test_session_gives_further_outputs_without_copying_the_graph(build, run):
    model = Model.of(build.mlp())
    session = open_session(model, threads=1, outputs=["r", "y", "r", "h"])
    assert [output.name for output in session.get_outputs()] == ["y", "r", "h"]
    x = build.rng.standard_normal((3, 8)).astype(np.float32)
    y, r, h = session.run(None, {"x": x})
    assert np.array_equal(r, np.maximum(h, 0))
    assert np.allclose(y, run(model, {"x": x})[0], atol=1e-5)
    assert len(model.proto.graph.output) == 1


def test_session_errors_are_mapped(build):
    proto = build.model(
        [helper.make_node("Mystery", ["x"], ["y"], domain="acme")], [build.value("x", [2])], [build.value("y", [2])]
    )
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    for kind in (ModelError, EngineBuildError):
        with pytest.raises(kind, match="cannot run") as error:
            open_session(Model.of(proto), threads=1, error=kind, log_severity=4)
        assert error.value.__cause__ is not None


def test_has_qdq(build):
    assert not has_qdq(build.mlp())
    proto = build.model(
        [helper.make_node("QuantizeLinear", ["x", "s"], ["y"])],
        [build.value("x", [2])],
        [build.value("y", [2], TensorProto.UINT8)],
        [build.const("s", 0.1)],
    )
    assert has_qdq(proto)
