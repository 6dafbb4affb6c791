"""Options of TensorRT's builders: parsing, limits, words, and the refusal of what a module lacks."""

from __future__ import annotations

import gc
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quantlab.engines.tensorrt.config import Session, TimingCache, load_plugins, make_config
from quantlab.engines.tensorrt.flavour import TENSORRT_RTX, load_flavour
from quantlab.engines.tensorrt.options import BuildOptions, Typing, parse_memory_pools, parse_size, parse_typing
from quantlab.errors import BackendUnavailable, ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1048576", 2**20), ("2GiB", 2**31), ("2gi", 2**31), ("512MB", 512 * 10**6), ("1.5k", 1500), ("3 MiB", 3 << 20)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, "--workspace") == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "1TiB", "1e9", "nan", "0.0k", "9" * 30, "1 2"])
def test_malformed_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--workspace .* is malformed"):
        parse_size(text, "--workspace")


def test_memory_pools() -> None:
    pools = parse_memory_pools(("tactic-dram:1GiB", "dla-local-dram:2M"), "64MiB")
    assert pools == (("workspace", 64 << 20), ("tactic-dram", 1 << 30), ("dla-local-dram", 2 * 10**6))
    with pytest.raises(ConfigError, match="'tactic-dram' is malformed"):
        parse_memory_pools(("tactic-dram",))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"optimization_level": 6}, "--optimization-level is out of range"),
        ({"optimization_level": -1}, "--optimization-level is out of range"),
        ({"max_aux_streams": -1}, "--max-aux-streams is out of range"),
        ({"dla_core": -1}, "--dla-core is out of range"),
        ({"memory_pools": (("workspce", 1),)}, "no memory pool 'workspce'"),
        ({"memory_pools": (("workspace", 1), ("workspace", 2))}, "two limits"),
        ({"hardware_compatibility": "ampere"}, "no hardware compatibility level 'ampere'"),
        ({"compute_capabilities": ("8.9",)}, "malformed"),
        ({"compute_capabilities": ("current", "sm89")}, "stands alone"),
    ],
)
def test_values_that_no_tensorrt_takes(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        BuildOptions(**values)


def test_nearest_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'weak'"):
        parse_typing("week")
    assert parse_typing("weak") is Typing.WEAK


def test_words_of_the_command_line() -> None:
    assert BuildOptions().described() == {}
    options = BuildOptions(
        memory_pools=(("workspace", 1024),), timing_cache=Path("deep/down.cache"), optimization_level=0,
        version_compatible=True, hardware_compatibility="ampere-plus", compute_capabilities=("sm89", "sm120"),
        dla_core=1, plugins=(Path("a/lib.so"),), refit=True, strip_plan=True, sparse_weights=True, typing=Typing.WEAK,
        max_aux_streams=0,
    )  # fmt: skip
    assert options.described() == {
        "memory-pool workspace": "1024", "timing-cache": "down.cache", "optimization-level": "0",
        "hardware-compatibility": "ampere-plus", "compute-capability": "sm89,sm120", "dla-core": "1",
        "plugin": "lib.so", "max-aux-streams": "0", "typing": "weak", "version-compatible": "yes", "refit": "yes",
        "strip": "yes", "sparse-weights": "yes",
    }  # fmt: skip


@pytest.fixture
def session() -> Session:
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13 (Linux on x86-64)")
    return Session.open(load_flavour(TENSORRT_RTX))


def configured(session: Session, **values: Any) -> Any:
    return make_config(session, BuildOptions(**values), tf32=False, current_gpu=False)


@pytest.mark.tensorrt_rtx
class TestConfig:
    def test_options_arrive(self, session: Session) -> None:
        module = session.flavour.module
        config = configured(
            session, memory_pools=(("workspace", 1 << 26), ("tactic-dram", 1 << 27)), optimization_level=4,
            max_aux_streams=2, refit=True, sparse_weights=True,
        )  # fmt: skip
        assert config.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == 1 << 26
        assert config.get_memory_pool_limit(module.MemoryPoolType.TACTIC_DRAM) == 1 << 27
        assert config.builder_optimization_level == 4
        assert config.max_aux_streams == 2
        assert config.get_flag(module.BuilderFlag.REFIT)
        assert config.get_flag(module.BuilderFlag.SPARSE_WEIGHTS)
        assert not config.get_flag(module.BuilderFlag.STRIP_PLAN)
        assert config.profiling_verbosity == module.ProfilingVerbosity.DETAILED

    @pytest.mark.parametrize("tf32", [True, False])
    def test_tf32_is_chosen(self, session: Session, tf32: bool) -> None:
        config = make_config(session, BuildOptions(), tf32=tf32, current_gpu=False)
        assert config.get_flag(session.flavour.module.BuilderFlag.TF32) is tf32

    def test_compute_capabilities(self, session: Session) -> None:
        known = session.flavour.module.ComputeCapability
        config = configured(session, compute_capabilities=("sm89", "sm120"))
        assert [config.get_compute_capability(i) for i in range(2)] == [known.SM89, known.SM120]
        current = make_config(session, BuildOptions(), tf32=False, current_gpu=True)
        assert current.get_compute_capability(0) == known.CURRENT
        assert configured(session).num_compute_capabilities == 0

    def test_a_gpu_that_it_does_not_know(self, session: Session) -> None:
        with pytest.raises(ConfigError, match="cannot build for sm52") as caught:
            configured(session, compute_capabilities=("sm52",))
        assert "sm89" in str(caught.value.expected)

    def test_current_without_a_gpu(self, session: Session) -> None:
        with pytest.raises(BackendUnavailable, match="current needs a GPU"):
            configured(session, compute_capabilities=("current",))

    def test_what_only_the_log_refuses(self, session: Session) -> None:
        """The call succeeds, and the log says that it did nothing."""
        with pytest.raises(ConfigError, match=r"TensorRT-RTX .* refuses --hardware-compatibility") as caught:
            configured(session, hardware_compatibility="ampere-plus")
        assert "unsupported" in str(caught.value.got)
        assert "leave --hardware-compatibility out" in str(caught.value.hint)

    def test_dla(self, session: Session) -> None:
        with pytest.raises(ConfigError, match="finds no deep learning accelerator number 0"):
            configured(session, dla_core=0)

    def test_what_only_a_python_warning_refuses(self, session: Session, tmp_path: Path) -> None:
        file = tmp_path / "timings"
        with pytest.raises(ConfigError, match=r"TensorRT-RTX .* refuses --timing-cache") as caught:
            TimingCache(session, configured(session), file)
        assert "no-op" in str(caught.value.got)
        assert not file.exists()

    def test_a_module_without_the_option(self, session: Session) -> None:
        class Bare:
            def __getattr__(self, name: str) -> Any:
                if name == "BuilderFlag":
                    return type("BuilderFlag", (), {"TF32": session.flavour.module.BuilderFlag.TF32})
                return getattr(session.flavour.module, name)

        flavour = type(session.flavour)(TENSORRT_RTX, Bare())
        bare = Session(flavour, session.log, session.builder)
        with pytest.raises(ConfigError, match=r"TensorRT-RTX \S+ has no --strip"):
            configured(bare, strip_plan=True)


@pytest.mark.tensorrt_rtx
class TestPlugins:
    def test_missing(self, session: Session, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"there is no such file"):
            load_plugins(session, (tmp_path / "none.so",))

    def test_not_a_library(self, session: Session, tmp_path: Path) -> None:
        file = tmp_path / "text.so"
        file.write_text("not a library")
        with pytest.raises(ConfigError, match="cannot be loaded") as caught:
            load_plugins(session, (file,))
        assert "invalid ELF header" in str(caught.value.got) or "too short" in str(caught.value.got)

    def test_a_library_without_operators(self, session: Session, tmp_path: Path) -> None:
        file = tmp_path / "libnothing.so"
        compile_library(file, "int nothing(void) { return 0; }")
        with pytest.raises(ConfigError, match=r"brings no operator for TensorRT-RTX"):
            load_plugins(session, (file,))

    def test_the_registry_outlives_the_first_log(self, session: Session, tmp_path: Path) -> None:
        """TensorRT writes what the registry refuses to the first log of the process, whoever owns it."""
        file = tmp_path / "libnothing.so"
        compile_library(file, "int nothing(void) { return 0; }")
        del session
        for _ in range(2):
            gc.collect()
            opened = Session.open(load_flavour(TENSORRT_RTX))
            with pytest.raises(ConfigError, match="brings no operator"):
                load_plugins(opened, (file,))
            del opened

    def test_none(self, session: Session) -> None:
        assert load_plugins(session, ()) == ()


def compile_library(path: Path, source: str) -> None:
    code = path.with_suffix(".c")
    code.write_text(source)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, code], check=True)
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
