"""Ranges from any form into any other: nothing is lost on the way, and what does not fit is named."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from original_model import exported

from quantlab.calibrators import CalibrationCache, CalibrationTable
from quantlab.calibrators.imported import imported_table
from quantlab.calibrators.quantize import SMALLEST_SCALE
from quantlab.calibrators.tensorrt_cache import Algorithm, symmetric_scales
from quantlab.degradation import DegradationCode
from quantlab.errors import CalibrationError, ConfigError, EngineMismatch, QuantlabError
from quantlab.graph.model import load_model
from quantlab.graph.ranges import activation_scales
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.progress import Silent
from quantlab.workflow.convert import Conversion, ConvertSettings, convert_ranges
from quantlab.workflow.range_diff import diff_document, diff_files, diff_text
from quantlab.workflow.ranges import RangeKind, read_ranges

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1),
    st.sampled_from(["a: b", ": ", " ", "a b", "(Unnamed Layer* 82) [Shuffle]_output", "图/卷积:0", "x: 3c010a14"]),
)
NO_SHRINKING = tuple(phase for phase in Phase if phase is not Phase.shrink)
"""Preparing a model takes a tenth of a second, and the examples are small."""

SCALES = st.just(0.0) | st.floats(SMALLEST_SCALE, 2.0**100, width=32)
"""Down to the smallest normal float32; smaller scales are raised to it."""

PLAIN = ConvertSettings(None, TENSORRT, None, None, None, {}, force=True)


def convert(source: Path, out: Path, model: Path | None = None, **changes: object) -> Conversion:
    fields = {name: getattr(PLAIN, name) for name in PLAIN.__slots__} | changes
    return convert_ranges(source, out, model, ConvertSettings(**fields), Silent())  # type: ignore[arg-type]


@given(st.dictionaries(NAMES, SCALES, min_size=1, max_size=6))
def test_cache_to_table_and_back_is_the_identity(scales: dict[str, float]) -> None:
    table = imported_table(scales, "c")
    assert symmetric_scales(table) == scales
    cache = CalibrationCache.from_table(table)
    assert CalibrationCache.parse(cache.render(), "c").scales == scales


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scales=st.dictionaries(NAMES.filter(lambda n: not n.lstrip().startswith("{")), SCALES, min_size=1, max_size=4))
@pytest.mark.parametrize("kind", [kind for kind in RangeKind if kind is not RangeKind.QDQ])
def test_through_every_form_of_file(tmp_path: Path, kind: RangeKind, scales: dict[str, float]) -> None:
    source = tmp_path / "in.calib"
    source.write_bytes(CalibrationCache(8601, "MinMaxCalibration", scales).render().encode())
    convert(source, tmp_path / f"between{kind.suffix}")
    convert(tmp_path / f"between{kind.suffix}", tmp_path / "out.calib", tensorrt="8.6.1", algorithm=Algorithm.MINMAX)
    assert dict(CalibrationCache.load(tmp_path / "out.calib").scales) == scales


def chain(names: list[str]) -> ModelProto:
    """One MatMul after the other, whose tensors have these names."""
    weight = numpy_helper.from_array(np.eye(32, dtype=np.float32) * 0.5, "\x01 weight")
    nodes = [
        helper.make_node("MatMul", [a, weight.name], [b]) for a, b in itertools.pairwise(names)
    ]  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(
    max_examples=20, deadline=None, phases=NO_SHRINKING, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(NAMES, min_size=3, max_size=5, unique=True),
    scales=st.lists(st.floats(SMALLEST_SCALE, 2.0**60, width=32), min_size=5, max_size=5),
)
def test_cache_to_qdq_and_back_is_the_identity_on_covered_tensors(
    tmp_path: Path, names: list[str], scales: list[float]
) -> None:
    model, cache = tmp_path / "net.onnx", tmp_path / "in.calib"
    onnx.save(chain(names), model)
    given_scales = dict(zip(names, scales, strict=False))
    cache.write_bytes(CalibrationCache(101600, "EntropyCalibration2", given_scales).render().encode())
    there = convert(cache, tmp_path / "net.qdq.onnx", model)
    assert len(there.layers) == len(names) - 1
    convert(tmp_path / "net.qdq.onnx", tmp_path / "out.calib")
    found = CalibrationCache.load(tmp_path / "out.calib").scales
    assert dict(found) == {name: given_scales[name] for name in names[:-1]}, "all but the output, which stays float"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(exported(), path)
    return path


def cache_of(path: Path, *names: str) -> Path:
    path.write_text(CalibrationCache(8601, "EntropyCalibration2", dict.fromkeys(names, 0.5)).render())
    return path


def test_coverage_names_what_does_not_fit(tmp_path: Path, model: Path) -> None:
    source = cache_of(tmp_path / "c.calib", "x", "act", "both", "foreign", "bias")
    done = convert(source, tmp_path / "out.calib", model)
    assert done.coverage is not None
    assert done.coverage.covered == ("x", "act", "both")
    assert dict(done.coverage.aliased) == {"same": "act", "dropped": "act", "turned": "both", "flat": "both"}
    assert done.coverage.without_scale == ("conv", "norm", "sum1", "sum2", "n_float", "y")
    assert done.coverage.without_tensor == ("foreign",), "bias is a constant of the model"
    assert {(d.code, d.count) for d in done.degradations} == {
        (DegradationCode.UNVERIFIED_CACHE, 1), (DegradationCode.UNMATCHED_RANGES, 6),
        (DegradationCode.UNMATCHED_RANGES, 1),
    }  # fmt: skip
    written = CalibrationCache.load(tmp_path / "out.calib")
    assert list(written.scales) == ["x", "act", "both", "foreign", "bias", "dropped", "flat", "same", "turned"]


def test_the_prepared_graph_finds_ranges_under_equal_names(tmp_path: Path, model: Path) -> None:
    """The cache names a tensor that preparation drops, not the one that it keeps."""
    done = convert(cache_of(tmp_path / "c.calib", "x", "turned"), tmp_path / "q.onnx", model)
    assert set(activation_scales(load_model(tmp_path / "q.onnx"))) >= {"x"}
    assert len(done.layers) == 2, "the Gemm's input is `turned` in another shape"


def test_headers(tmp_path: Path) -> None:
    source = cache_of(tmp_path / "c.calib", "x")
    for changes, expected in (
        ({}, "TRT-8601-EntropyCalibration2"),
        ({"tensorrt": "10.16.0"}, "TRT-101600-EntropyCalibration2"),
        ({"algorithm": Algorithm.MINMAX}, "TRT-8601-MinMaxCalibration"),
    ):
        done = convert(source, tmp_path / "out.calib", **changes)
        assert (tmp_path / "out.calib").read_text().splitlines()[0] == expected
        assert [Path(file).name for file in done.files] == ["out.calib", "out.calib.json"]
    provenance = json.loads((tmp_path / "out.calib.json").read_text())
    assert (provenance["source"], provenance["algorithm"]) == ("c.calib", "MinMaxCalibration")


def test_a_cache_stays_bound_to_its_model(tmp_path: Path, model: Path) -> None:
    """Once a cache was converted with a model, its provenance refuses any other."""
    convert(cache_of(tmp_path / "c.calib", "x", "act"), tmp_path / "bound.calib", model)
    other = exported()
    other.graph.doc_string = "another"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(EngineMismatch, match="made from another model") as caught:
        convert(tmp_path / "bound.calib", tmp_path / "q.onnx", tmp_path / "other.onnx")
    assert load_model(model).sha256[:16] in str(caught.value)
    assert convert(tmp_path / "bound.calib", tmp_path / "q.onnx", model).layers


def test_nothing_in_common(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CalibrationError, match="no tensor in common") as caught:
        convert(cache_of(tmp_path / "c.calib", "a", "b"), tmp_path / "q.onnx", model)
    assert "2 tensors: a, b" in str(caught.value)
    assert not (tmp_path / "q.onnx").exists()


def test_a_table_keeps_its_provenance(tmp_path: Path) -> None:
    table = imported_table({"x": 0.5}, "old.calib", model="m.onnx", model_sha256="a" * 64)
    (tmp_path / "t.json").write_text(table.to_json())
    convert(tmp_path / "t.json", tmp_path / "u.json")
    assert CalibrationTable.load(tmp_path / "u.json") == table


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.calib", b"TRT-8601-A\nx: 1\n", RangeKind.CACHE),
        ("a.cache", b"TRT-8601-A\nx: 1\n", RangeKind.CACHE),
        ("a.txt", b"TRT-8601-A\nx: 1\n", RangeKind.CACHE),
        ("a.cache", b"x 1.0\n", RangeKind.ORT_TEXT),
        ("a", b'{"x": {"lowest": -1, "highest": 2}}', RangeKind.ORT_JSON),
    ],
)
def test_the_content_tells_the_kind(tmp_path: Path, name: str, content: bytes, kind: RangeKind) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_ranges(tmp_path / name).kind is kind


@given(content=st.binary(max_size=200), name=st.sampled_from(["f", "f.calib", "f.json", "f.onnx", "f.flatbuffers"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_has_ranges_or_is_an_error(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        assert read_ranges(tmp_path / name).scales()
    except QuantlabError as error:
        assert name in str(error)


def test_uint8_models_have_no_symmetric_ranges(tmp_path: Path, model: Path) -> None:
    table = imported_table({"x": 0.5}, "c")
    (tmp_path / "t.json").write_text(table.to_json())
    with pytest.raises(ConfigError, match="imported range"):
        convert(tmp_path / "t.json", tmp_path / "q.onnx", model, target=ONNXRUNTIME)


class TestDiff:
    def test_files_of_any_kind(self, tmp_path: Path) -> None:
        left = cache_of(tmp_path / "a.calib", "x", "y", "z")
        (tmp_path / "b.txt").write_text(f"x {0.5 * 127}\ny {127}\nw 1\n")
        diff = diff_files(left, tmp_path / "b.txt")
        assert (diff.common, diff.equal, diff.only_left, diff.only_right) == (2, 1, ("z",), ("w",))
        text = diff_text(diff)
        assert "TensorRT 8.6.1 EntropyCalibration2" in text
        assert "2 tensors in both, 1 with the same scale bit for bit" in text
        assert "1 in A alone: z" in text and "1 in B alone: w" in text
        assert text.splitlines()[-1].split() == ["63.5", "127", "2", "y"]
        document = json.loads(diff_document(diff))
        assert document["schema"] == "quantlab.cache-diff/1"
        assert document["moves"] == [{"tensor": "y", "left_amax": 63.5, "right_amax": 127.0, "ratio": 2.0}]

    def test_infinite_ratios_are_json(self, tmp_path: Path) -> None:
        left = cache_of(tmp_path / "a.calib", "x")
        right = tmp_path / "b.calib"
        right.write_text("TRT-8601-A\nx: 0\n")
        assert json.loads(diff_document(diff_files(right, left)))["moves"][0]["ratio"] == "inf"
