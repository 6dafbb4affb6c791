"""The truth table from files: a bare Q/DQ model in several backends, or engines of one graph."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from qdq_checks import UNLIMITED, noise, quantized, ranges
from qdq_graphs import residual
from workflow_data import Recorder

from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, ConfigError, DataError, EngineBuildError, EngineMismatch, ModelError
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.model import Model, load_model
from quantlab.graph.prepare import prepare
from quantlab.graph.qdq import QuantizationKind
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.harness.truth import TruthSettings
from quantlab.harness.truth_record import Judgement, Truth
from quantlab.precision import Precision
from quantlab.workflow import truth as module
from quantlab.workflow.sources import DataRequest
from quantlab.workflow.truth import (
    across_backends,
    across_engines,
    as_written,
    parse_backends,
    stated_precision,
    write_truth,
)

SETTINGS = TruthSettings(batch_size=4, threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``m.onnx``, ``m.qdq.onnx`` and 10 samples in ``x.npz``."""
    original = residual()
    made, _ = quantized(original, UNLIMITED)
    onnx.save(original, tmp_path / "m.onnx")
    onnx.save(made.proto, tmp_path / "m.qdq.onnx")
    np.savez(tmp_path / "x.npz", x=noise(original, 10)["x"])
    return tmp_path


def run(folder: Path, backends: Sequence[str], original: str | None = "m.onnx", **values: object) -> Truth:
    request = DataRequest(str(folder / "x.npz"), threads=1, **values)  # type: ignore[arg-type]
    named = folder / original if original is not None else None
    return across_backends(folder / "m.qdq.onnx", named, backends, request, SETTINGS, Recorder())


def build(folder: Path, *precisions: Precision, method: str = "minmax") -> None:
    """Engines of ``m.onnx`` in ``engines``."""
    prepared = prepare(load_model(folder / "m.onnx"))
    table = ranges(prepared.model, noise(prepared.model.proto))
    (folder / "engines").mkdir(exist_ok=True)
    for precision in precisions:
        variant = Variant(prepared, "onnxruntime", precision, TENSORRT, table)
        OnnxRuntimeBuilder().build(variant, folder / "engines")


class Missing:
    """Stands for the builder of a backend whose library is not there, or refuses the graph."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def build(self, variant: Variant, folder: Path) -> Path:
        raise self.error

    def load(self, path: Path, threads: int) -> object:
        raise self.error


class TestBareFile:
    def test_onnx_runtime(self, folder: Path) -> None:
        truth = run(folder, ["onnxruntime"])
        (row,) = truth.runtimes
        assert row.judgement is Judgement.AS_WRITTEN
        assert row.proved is Precision.INT8
        assert (truth.graph, truth.model, truth.n_samples, truth.truth) == ("m.qdq.onnx", "m.onnx", 10, "float64")
        assert truth.graph_sha256 == load_model(folder / "m.qdq.onnx").sha256
        (output,) = row.outputs
        assert output.graph is not None
        assert output.graph.sqnr_db is not None
        assert output.graph.sqnr_db > 60
        assert output.exact is not None
        assert output.exact.sqnr_db is not None
        assert 20 < output.exact.sqnr_db < 50, "what quantization costs"
        assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "m.qdq.onnx", "x.npz"]

    def test_openvino(self, folder: Path) -> None:
        pytest.importorskip("openvino")
        truth = run(folder, ["onnxruntime", "openvino"])
        row = truth.row("openvino")
        assert row is not None
        assert row.judgement not in (Judgement.UNAVAILABLE, Judgement.FAILED, Judgement.NON_FINITE)
        (output,) = row.outputs
        assert output.graph is not None
        assert output.graph.sqnr_db is not None
        assert output.graph.sqnr_db > 15, "the same graph, not another one"

    def test_a_backend_that_is_not_there_is_a_row(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = module.builder_for
        errors: dict[str, Exception] = {
            "tensorrt-rtx": BackendUnavailable("tensorrt-rtx is not installed", got="no module"),
            "onnxruntime-cuda": EngineBuildError("the graph was refused", got="node conv"),
        }
        monkeypatch.setattr(
            module, "builder_for", lambda name, *rest: Missing(errors[name]) if name in errors else real(name, *rest)
        )
        truth = run(folder, ["tensorrt-rtx", "onnxruntime", "onnxruntime-cuda"])
        assert [row.judgement for row in truth.runtimes] == [
            Judgement.UNAVAILABLE, Judgement.AS_WRITTEN, Judgement.FAILED,
        ]  # fmt: skip
        assert truth.runtimes[0].verdict == "tensorrt-rtx is not installed: no module"
        assert truth.runtimes[2].verdict == "it refused the graph: the graph was refused: node conv"

    def test_the_engine_is_the_file_as_it_is(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is simplified or added, and the sidecar says that no table and no rules were used."""
        seen = []
        real = OnnxRuntimeBuilder.build

        def watched(self: OnnxRuntimeBuilder, variant: Variant, target: Path) -> Path:
            path = real(self, variant, target)
            seen.append((variant, onnx.load(path), read_sidecar(path)))
            return path

        monkeypatch.setattr(OnnxRuntimeBuilder, "build", watched)
        run(folder, ["onnxruntime"])
        ((variant, proto, sidecar),) = seen
        given = onnx.load(folder / "m.qdq.onnx").graph
        assert list(proto.graph.node) == list(given.node)
        assert list(proto.graph.initializer) == list(given.initializer)
        assert variant.existing is ExistingPolicy.KEEP
        assert (sidecar.target, sidecar.method, sidecar.table_sha256) == (None, None, None)
        assert sidecar.kept == ("stem", "first", "second", "last")
        assert (sidecar.requested, sidecar.proved) == (Precision.INT8, Precision.INT8)
        assert sidecar.model == "m.qdq.onnx"
        assert sidecar.degradations == ()

    def test_a_number_of_samples_is_taken_if_none_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "DEFAULT_SAMPLES", 6)
        assert run(folder, ["onnxruntime"]).n_samples == 6
        assert run(folder, ["onnxruntime"], limit=9).n_samples == 9

    def test_written_files(self, folder: Path) -> None:
        truth = run(folder, ["onnxruntime"])
        paths = write_truth(folder, truth)
        assert [path.name for path in paths] == ["truth.json", "truth.csv", "truth.md"]
        assert Truth.load(paths[0]) == truth
        with paths[1].open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["execution"] for row in rows] == [row.name for row in truth.rows]
        graph = truth.runtimes[0].outputs[0].graph
        assert graph is not None
        assert float(rows[-1]["graph_sqnr_db"]) == pytest.approx(graph.sqnr_db)


class TestNoRuntime:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (BackendUnavailable("openvino is not installed", got="no module"), BackendUnavailable),
            (EngineBuildError("the graph was refused", got="node conv"), EngineBuildError),
        ],
    )
    def test_is_an_error(
        self, error: Exception, expected: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "builder_for", lambda *_: Missing(error))
        with pytest.raises(expected, match="none of the runtimes can run the graph") as caught:
            run(folder, ["openvino"])
        assert caught.value.got in (
            "openvino: openvino is not installed: no module",
            "openvino: it refused the graph: the graph was refused: node conv",
        )


class TestOrigin:
    """Whether the original is the one that the graph was made from."""

    def test_the_right_one(self, folder: Path) -> None:
        assert run(folder, ["onnxruntime"]).notes == ()

    def test_other_weights(self, folder: Path) -> None:
        """Another training of the same model has all names and shapes, and other numbers."""
        other = onnx.load(folder / "m.onnx")
        rng = np.random.default_rng(7)
        for tensor in other.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim > 1:
                fresh = rng.standard_normal(values.shape).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
        onnx.save(other, folder / "other.onnx")
        (note,) = run(folder, ["onnxruntime"], "other.onnx").notes
        assert note.startswith("other.onnx may not be the model that the graph was made from: 4 of 4 quantized weights")

    def test_other_names(self, folder: Path) -> None:
        """Nothing is said against it, nor for it."""
        other = onnx.load(folder / "m.onnx")
        (given,), (end,) = other.graph.input, other.graph.output
        for node in other.graph.node:
            node.name += "-renamed"
            for names in (node.input, node.output):
                names[:] = [name if name == given.name else f"{name}-renamed" for name in names]
        for tensor in other.graph.initializer:
            tensor.name += "-renamed"
        other.graph.node.append(onnx.helper.make_node("Identity", [f"{end.name}-renamed"], [end.name]))
        del other.graph.value_info[:]
        onnx.save(other, folder / "other.onnx")
        (note,) = run(folder, ["onnxruntime"], "other.onnx").notes
        assert note.startswith("no quantized weight has its name in other.onnx")


class TestPrecisions:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (QuantizationKind.INT8, Precision.INT8),
            (QuantizationKind.FP8, Precision.FP8),
            (QuantizationKind.INT8_WEIGHTS, Precision.INT8_WEIGHTS),
        ],
    )
    def test_stated(self, kind: QuantizationKind, expected: Precision) -> None:
        made, _ = quantized(residual(), UNLIMITED, kind=kind)
        assert stated_precision(Model.of(made.proto)) is expected

    @pytest.mark.parametrize("kind", [QuantizationKind.FP8, QuantizationKind.INT8_WEIGHTS])
    def test_other_kinds_run_as_written(self, folder: Path, kind: QuantizationKind) -> None:
        made, _ = quantized(residual(), UNLIMITED, kind=kind)
        onnx.save(made.proto, folder / "m.qdq.onnx")
        (row,) = run(folder, ["onnxruntime"]).runtimes
        assert row.judgement is Judgement.AS_WRITTEN


class TestEngines:
    def test_a_folder(self, folder: Path) -> None:
        build(folder, Precision.FP32, Precision.INT8)
        request = DataRequest(str(folder / "x.npz"), threads=1)
        truth = across_engines([folder / "engines"], None, request, SETTINGS, Recorder())
        assert [row.name for row in truth.runtimes] == ["onnxruntime-int8-minmax"]
        assert truth.model == "onnxruntime-fp32.onnx", "the FP32 engine stands for the original"
        assert truth.runtimes[0].judgement is Judgement.AS_WRITTEN

    def test_engines_of_two_graphs(self, folder: Path) -> None:
        build(folder, Precision.INT8, Precision.INT8_WEIGHTS)
        request = DataRequest(str(folder / "x.npz"), threads=1)
        with pytest.raises(EngineMismatch, match=r"engine onnxruntime-int8-weights has another") as caught:
            across_engines([folder / "engines"], None, request, SETTINGS, Recorder())
        assert "name the engines of one" in str(caught.value.hint)

    def test_no_quantized_graph(self, folder: Path) -> None:
        build(folder, Precision.FP32)
        request = DataRequest(str(folder / "x.npz"), threads=1)
        with pytest.raises(ConfigError, match="none of the engines holds a quantized ONNX graph"):
            across_engines([folder / "engines"], None, request, SETTINGS, Recorder())


class TestBadInput:
    def test_no_pairs(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"m\.onnx holds no QuantizeLinear") as caught:
            as_written(folder / "m.onnx")
        assert "--model" in str(caught.value.hint)

    def test_an_original_with_pairs(self, folder: Path) -> None:
        with pytest.raises(ModelError, match="holds Q/DQ nodes itself"):
            run(folder, ["onnxruntime"], "m.qdq.onnx")

    @pytest.mark.parametrize("part", ["input", "output"])
    def test_an_original_with_other_ends(self, folder: Path, part: str) -> None:
        other: ModelProto = residual()
        name = getattr(other.graph, part)[0].name
        for node in other.graph.node:
            ends = getattr(node, part)
            ends[:] = ["renamed" if end == name else end for end in ends]
        getattr(other.graph, part)[0].name = "renamed"
        onnx.save(other, folder / "other.onnx")
        with pytest.raises(EngineMismatch, match=f"has other {part}s than the quantized graph") as caught:
            run(folder, ["onnxruntime"], "other.onnx")
        assert str(caught.value.got).startswith("renamed [n,")
        assert str(caught.value.expected).startswith(f"{name} [n,")

    def test_sizes_of_an_original(self) -> None:
        """Batches may differ and sizes be open, or unknown; numbers that both state must be the same."""
        given = {"x": ("n", 3, None), "y": None}
        assert module._alike(given, {"x": (8, 3, 5), "y": (4,)})
        assert not module._alike(given, {"x": ("n", 4, None), "y": None})
        assert not module._alike(given, {"x": ("n", 3), "y": None})
        assert not module._alike(given, {"x": ("n", 3, None)})

    def test_data_that_does_not_fit(self, folder: Path) -> None:
        np.savez(folder / "x.npz", x=np.zeros((3, 16, 7, 7), np.float32))
        with pytest.raises(DataError):
            run(folder, ["onnxruntime"])

    @pytest.mark.parametrize("text", ["", " , "])
    def test_no_backend(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--across names no backend"):
            parse_backends(text)

    def test_backends(self) -> None:
        assert parse_backends("onnxruntime, openvino,onnxruntime") == ("onnxruntime", "openvino")
        with pytest.raises(ConfigError, match="there is no backend 'onnxruntim'"):
            parse_backends("onnxruntim")

    def test_nan_in_the_graph_is_no_pass(self, folder: Path) -> None:
        """A scale of zero divides by zero: references and runtime agree on nonsense, and the original does not."""
        made = onnx.load(folder / "m.qdq.onnx")
        dequantize = next(node for node in made.graph.node if node.op_type == "DequantizeLinear")
        scale = next(tensor for tensor in made.graph.initializer if tensor.name == dequantize.input[1])
        scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), np.nan), scale.name))
        onnx.save(made, folder / "m.qdq.onnx")
        with pytest.raises(ModelError, match="NaN"):
            run(folder, ["onnxruntime"])


def test_a_target_is_no_matter(folder: Path) -> None:
    """UINT8 activations with zero-points are run as they are."""
    made, _ = quantized(residual(), ONNXRUNTIME)
    onnx.save(made.proto, folder / "m.qdq.onnx")
    (row,) = run(folder, ["onnxruntime"]).runtimes
    assert row.proved is Precision.INT8
    assert row.outputs[0].graph is not None
