"""What is not opened, what differs from the place of the build, and what TensorRT-RTX has more."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_engines import expect, feed, scale_model, write_engine
from fake_tensorrt import State

from quantlab.engines.cuda import open_device
from quantlab.engines.record import EngineRecord
from quantlab.engines.sidecar import sidecar_path
from quantlab.engines.tensorrt.compatibility import check_validity, differences
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.flavour import Flavour, load_flavour
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.engines.tensorrt.slot import GraphMode
from quantlab.errors import BackendUnavailable, ConfigError, EngineMismatch, MeasurementError


def record(**values: Any) -> EngineRecord:
    made: dict[str, Any] = {
        "flavour": "tensorrt", "version": "10.16.1.11", "gpu": "Fake GPU", "compute_capability": "9.0", "driver": None,
        "cuda": "13.0", "options": {}, "profiles": (), "onnx_sha256": "",
    }  # fmt: skip
    return EngineRecord(**{**made, **values})


class TestDifferences:
    @pytest.fixture
    def flavour(self, state: State) -> Flavour:
        return load_flavour("tensorrt")

    @pytest.fixture
    def facts(self, gpu: FakeCuda) -> Any:
        return open_device().facts

    @pytest.mark.parametrize(
        ("values", "decisive", "others"),
        [
            ({}, [], []),
            ({"version": "10.15.0"}, ["version"], []),
            ({"version": "10.15.0", "options": {"version-compatible": "yes"}}, [], ["version"]),
            ({"version": "10.17.0", "options": {"version-compatible": "yes"}}, ["version"], []),
            ({"version": "10.9.0", "options": {"version-compatible": "yes"}}, [], ["version"]),
            ({"compute_capability": "8.9"}, ["compute capability"], []),
            (
                {"compute_capability": "8.6", "options": {"hardware-compatibility": "ampere-plus"}},
                [],
                ["compute capability"],
            ),
            (
                {"compute_capability": "8.6", "options": {"hardware-compatibility": "same-compute-capability"}},
                ["compute capability"],
                [],
            ),
            ({"gpu": "NVIDIA H200", "cuda": "12.8"}, [], ["GPU", "CUDA of the driver"]),
            ({"gpu": None, "compute_capability": None, "cuda": None}, [], []),
            ({"flavour": "tensorrt-rtx"}, ["backend"], []),
        ],
    )
    def test_what_decides(
        self, flavour: Flavour, facts: Any, values: dict[str, Any], decisive: list[str], others: list[str]
    ) -> None:
        found = differences(record(**values), flavour, facts)
        assert [one.what for one in found if one.decisive] == decisive
        assert [one.what for one in found if not one.decisive] == others

    def test_rtx_decides_by_itself(self, rtx: State, facts: Any) -> None:
        found = differences(
            record(flavour="tensorrt-rtx", version="1.7.1", compute_capability="8.9"),
            load_flavour("tensorrt-rtx"),
            facts,
        )
        assert [(one.what, one.decisive) for one in found] == [("version", False), ("compute capability", False)]


class TestRefusals:
    def test_every_difference_and_what_to_do(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        path = write_engine(tmp_path, "scale", version="10.3.0", compute_capability="8.9", gpu="NVIDIA L4")
        with pytest.raises(EngineMismatch, match="tensorrt-fp32 was built for another place") as caught:
            TensorRTEngine(path)
        assert caught.value.got == (
            "version: built with 10.3.0, here 10.16.1.11; compute capability: built with 8.9, here 9.0; "
            "GPU: built with NVIDIA L4, here Fake GPU"
        )
        hint = caught.value.hint
        assert hint is not None
        for words in ("build it again here", "--version-compatible", "--hardware-compatibility ampere-plus"):
            assert words in hint
        assert state.deserialized == 0
        assert gpu.stack == []

    def test_differences_that_do_not_matter_are_kept(self, state: State, tmp_path: Path) -> None:
        with TensorRTEngine(write_engine(tmp_path, "scale", gpu="NVIDIA H200")) as engine:
            assert [str(one) for one in engine.differences] == ["GPU: built with NVIDIA H200, here Fake GPU"]

    @pytest.mark.parametrize("content", [b"scal", b"scale\0", b""])
    def test_a_damaged_file_is_not_opened(self, state: State, tmp_path: Path, content: bytes) -> None:
        path = write_engine(tmp_path, "scale")
        path.write_bytes(content)
        with pytest.raises(EngineMismatch, match="is not the file its sidecar describes"):
            TensorRTEngine(path)
        assert state.deserialized == 0

    def test_no_sidecar_unless_trusted(self, state: State, tmp_path: Path) -> None:
        path = write_engine(tmp_path, "scale")
        sidecar_path(path).unlink()
        with pytest.raises(EngineMismatch, match="has no sidecar"):
            TensorRTEngine(path)
        assert state.deserialized == 0
        inputs = feed()
        with TensorRTEngine(path, trust=True, backend="tensorrt") as engine:
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
            with pytest.raises(EngineMismatch, match="has no sidecar"):
                _ = engine.sidecar

    def test_an_engine_that_is_no_longer_what_it_was(
        self, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exchanged between the check of the file and the reading of it."""
        path = write_engine(tmp_path, "scale")
        monkeypatch.setattr(Path, "read_bytes", lambda self: b"nonzero")
        with pytest.raises(EngineMismatch, match="changed while it was read"):
            TensorRTEngine(path)
        assert state.deserialized == 0

    def test_an_engine_of_another_backend(self, state: State, tmp_path: Path) -> None:
        with pytest.raises(EngineMismatch, match="is not a TensorRT engine"):
            TensorRTEngine(write_engine(tmp_path, "scale", compiled=False))

    def test_what_the_library_refuses(self, state: State, gpu: FakeCuda, tmp_path: Path) -> None:
        with pytest.raises(EngineMismatch, match=r"TensorRT 10\.16\.1\.11 cannot open engine tensorrt-fp32") as caught:
            TensorRTEngine(write_engine(tmp_path, "unknown"))
        assert caught.value.got == "magic tag does not match"
        assert (gpu.log, gpu.stack) == (["runtime"], [])

    def test_no_memory_for_the_engine(self, state: State, tmp_path: Path) -> None:
        state.fail_deserialize = "Error Code 2: OutOfMemory (Requested size was 17179869184 bytes.) out of memory"
        with pytest.raises(MeasurementError, match="does not fit into the memory of Fake GPU") as caught:
            TensorRTEngine(write_engine(tmp_path, "scale"))
        assert "1,073,741,824 bytes free" in str(caught.value)

    def test_no_context(self, state: State, gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fake_tensorrt.Engine, "create_execution_context", lambda self: None)
        with pytest.raises(MeasurementError, match="no execution context could be made"):
            TensorRTEngine(write_engine(tmp_path, "scale"))
        assert gpu.log == ["engine", "runtime"]

    def test_no_tensorrt(self, gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(BackendUnavailable, match="TensorRT is"):
            TensorRTEngine(write_engine(tmp_path, "scale"))

    def test_host_code_only_where_the_sidecar_says_so(self, state: State, tmp_path: Path) -> None:
        TensorRTEngine(write_engine(tmp_path, "scale")).close()
        assert not state.host_code_allowed
        options = {"version-compatible": "yes"}
        TensorRTEngine(write_engine(tmp_path, "scale", options=options, version="10.9.0")).close()
        assert state.host_code_allowed

    @pytest.mark.parametrize("values", [{"graphs": GraphMode.RUNTIME}, {"runtime_cache": Path("cache")}])
    def test_what_only_rtx_has(self, state: State, tmp_path: Path, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"TensorRT 10\.16\.1\.11 has no"):
            TensorRTEngine(write_engine(tmp_path, "scale"), **values)


class TestRtx:
    def test_the_runtime_is_asked(self, rtx: State, tmp_path: Path) -> None:
        rtx.validity = ("INVALID", 3)
        path = write_engine(tmp_path, "scale" + "-" * 8, backend="tensorrt-rtx", version="1.7.1.116")
        with pytest.raises(EngineMismatch, match=r"TensorRT-RTX 1\.6\.1\.120 says that engine") as caught:
            TensorRTEngine(path)
        assert caught.value.got == ("version mismatch; unsupported cc; version: built with 1.7.1.116, here 1.6.1.120")
        assert rtx.deserialized == 0

    def test_no_reason_given(self, rtx: State, tmp_path: Path) -> None:
        rtx.validity = ("INVALID", 0)
        with pytest.raises(EngineMismatch, match="cannot run here") as caught:
            TensorRTEngine(write_engine(tmp_path, "scale---", backend="tensorrt-rtx"))
        assert caught.value.got == "no reason given"

    def test_a_gpu_that_is_said_to_be_unsupported_may_do(
        self, rtx: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """TensorRT-RTX 1.6 says so of every engine on an H100, and runs it."""
        rtx.models["scale---"] = scale_model()
        rtx.validity = ("INVALID", 2)
        inputs = feed()
        path = write_engine(tmp_path, "scale---", backend="tensorrt-rtx")
        with caplog.at_level(logging.WARNING, "quantlab.tensorrt"), TensorRTEngine(path) as engine:
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
        assert "does not support this GPU; it may run all the same" in caplog.text

    @pytest.mark.tensorrt_rtx
    def test_the_genuine_runtime_refuses_a_damaged_header(self, gpu: FakeCuda) -> None:
        """It needs no GPU to tell."""
        pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13 (Linux on x86-64)")
        flavour = load_flavour("tensorrt-rtx")
        log = TensorRTLog(flavour.module)
        runtime = flavour.module.Runtime(log.native)
        with pytest.raises(EngineMismatch, match="says that engine a cannot run here") as caught:
            check_validity(flavour, runtime, b"no engine" * 100, (), "a", log)
        assert "malformed engine" in str(caught.value.got)

    def test_slower_than_it_could_be(self, rtx: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rtx.models["scale---"] = scale_model()
        rtx.validity = ("SUBOPTIMAL", 2)
        with caplog.at_level(logging.WARNING, "quantlab.tensorrt"):
            TensorRTEngine(write_engine(tmp_path, "scale---", backend="tensorrt-rtx")).close()
        assert "slower than it could: unsupported cc" in caplog.text

    @pytest.mark.parametrize("graphs", list(GraphMode))
    def test_configuration(self, rtx: State, tmp_path: Path, graphs: GraphMode) -> None:
        rtx.models["scale---"] = scale_model()
        inputs = feed()
        with TensorRTEngine(write_engine(tmp_path, "scale---", backend="tensorrt-rtx"), graphs=graphs) as engine:
            np.testing.assert_array_equal(engine.run(inputs)["y"], expect(inputs))
        (config,) = rtx.configs
        assert config.cuda_graph_strategy == ("whole" if graphs is GraphMode.RUNTIME else "disabled")
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert config.cache is None

    def test_the_cache_of_compiled_kernels(self, rtx: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rtx.models["scale---"] = scale_model()
        path = write_engine(tmp_path, "scale---", backend="tensorrt-rtx")
        cache = tmp_path / "engine.cache"
        TensorRTEngine(path, runtime_cache=cache).close()
        assert cache.read_bytes() == b"kernels"
        with TensorRTEngine(path, runtime_cache=cache) as engine:
            engine.run(feed())
            engine.save_runtime_cache()
        assert cache.read_bytes() == b"kernels+"
        assert caplog.text == ""
        cache.write_bytes(b"rubbish")
        TensorRTEngine(path, runtime_cache=cache).close()
        assert "is not used" in caplog.text

    def test_no_cache_unless_asked(self, rtx: State, tmp_path: Path) -> None:
        rtx.models["scale---"] = scale_model()
        path = write_engine(tmp_path, "scale---", backend="tensorrt-rtx")
        with (
            TensorRTEngine(path) as engine,
            pytest.raises(MeasurementError, match="no runtime cache to save"),
        ):
            engine.save_runtime_cache()
        assert {file.name for file in tmp_path.iterdir()} == {path.name, sidecar_path(path).name}
