"""What the builder does without TensorRT: progress, interruptions, the log, and words for what went wrong."""

from __future__ import annotations

import enum
import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from quantlab.engines.tensorrt.builder import TensorRTBuilder, _build_error
from quantlab.engines.tensorrt.config import Session
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.log import TensorRTLog
from quantlab.engines.tensorrt.progress import WHOLE, BuildProgress, native_monitor, run_interruptible
from quantlab.errors import ConfigError, EngineBuildError
from quantlab.progress import Silent
from quantlab.workflow.build import builder_for

T = TypeVar("T")


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def fake_module() -> Any:
    logger = type("ILogger", (), {"Severity": Severity})
    return SimpleNamespace(ILogger=logger, IProgressMonitor=type("IProgressMonitor", (), {}), __version__="10.16.1")


class Listener(Silent):
    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.said: list[str] = []
        self.stop_at = stop_at

    def say(self, text: str) -> None:
        self.said.append(text)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterable[T]:
        assert (total, what) == (WHOLE, "building it")
        for item in items:
            self.seen.append(item)  # type: ignore[arg-type]
            if len(self.seen) == self.stop_at:
                raise KeyboardInterrupt
            yield item


def drained(progress: BuildProgress) -> list[int]:
    found = []
    while not progress.percents.empty():
        found.append(progress.percents.get())
    return found


class TestProgress:
    def test_phases_nest(self) -> None:
        progress = BuildProgress()
        progress.start("whole", None, 4)
        assert progress.step("whole", 0)
        assert drained(progress) == list(range(1, 26))
        progress.start("part", "whole", 2)
        progress.step("part", 0)
        assert drained(progress)[-1] == 37
        progress.start("detail", "part", 2)
        progress.step("detail", 0)
        assert drained(progress)[-1] == 43
        progress.finish("detail")
        progress.step("part", 1)
        progress.finish("part")
        progress.step("whole", 1)
        assert drained(progress)[-1] == 50
        progress.step("whole", 3)
        assert drained(progress) == list(range(51, 101))

    def test_it_never_goes_back(self) -> None:
        """TensorRT reports some phases again, out of order, or with more steps than it said."""
        progress = BuildProgress()
        progress.start("whole", None, 2)
        for _ in range(3):
            progress.start("part", "whole", 1)
            for step in range(4):
                progress.step("part", step)
            progress.finish("part")
        progress.step("unknown", 1)
        progress.start("nothing", "whole", 0)
        progress.step("nothing", 0)
        progress.step("whole", 0)
        progress.step("whole", 5)
        assert drained(progress) == list(range(1, 101))

    def test_stopping(self) -> None:
        progress = BuildProgress()
        monitor = native_monitor(fake_module(), progress)
        monitor.phase_start("whole", None, 2)
        assert monitor.step_complete("whole", 0) is True
        progress.stop.set()
        assert monitor.step_complete("whole", 1) is False
        monitor.phase_finish("whole")

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
    def test_no_exception_passes_through_the_binding(
        self, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise kind

        for name in ("start", "step", "finish"):
            monkeypatch.setattr(BuildProgress, name, broken)
        for call in ("phase_start", "step_complete", "phase_finish"):
            progress = BuildProgress()
            monitor = native_monitor(fake_module(), progress)
            arguments = {"phase_start": ("a", None, 1), "step_complete": ("a", 0), "phase_finish": ("a",)}[call]
            assert not getattr(monitor, call)(*arguments)
            assert progress.stop.is_set(), call


class TestInterruption:
    def test_the_bar_is_filled_whatever_was_reported(self) -> None:
        progress, listener = BuildProgress(), Listener()

        def work() -> str:
            progress.start("whole", None, 4)
            progress.step("whole", 0)
            return threading.current_thread().name

        assert run_interruptible(work, progress, listener, "building it") == "quantlab-build"
        assert listener.seen == list(range(1, 101))

    def test_errors_of_the_work_are_raised_here(self) -> None:
        def work() -> None:
            raise ConfigError("wrong")

        with pytest.raises(ConfigError, match="wrong"):
            run_interruptible(work, BuildProgress(), Listener(), "building it")

    def test_an_interruption_stops_the_work_and_waits_for_it(self) -> None:
        progress, listener = BuildProgress(), Listener(stop_at=1)
        ended: list[bool] = []

        def work() -> None:
            progress.start("whole", None, 2)
            progress.step("whole", 0)
            for step in range(1000):
                time.sleep(0.01)
                if not progress.step("whole", step % 2):
                    break
            time.sleep(0.05)
            ended.append(progress.stop.is_set())

        with pytest.raises(KeyboardInterrupt):
            run_interruptible(work, progress, listener, "building it")
        assert ended == [True]
        assert listener.said == ["stopping: TensorRT ends its current step first"]

    def test_what_failed_is_let_go_at_once(self) -> None:
        """TensorRT's objects must not die in the middle of another engine's run, when the collector comes by."""

        class Held:
            pass

        seen: list[weakref.ref[Held]] = []

        def work() -> None:
            held = Held()
            seen.append(weakref.ref(held))
            raise EngineBuildError("refused")

        gc.disable()
        try:
            with pytest.raises(EngineBuildError, match="refused"):
                run_interruptible(work, BuildProgress(), Silent(), "building it")
            assert seen[0]() is None
        finally:
            gc.enable()

    def test_a_narrator_that_does_not_ask(self) -> None:
        """One that returns the items at once, as all do where there is no terminal."""
        assert run_interruptible(lambda: 7, BuildProgress(), Silent(), "building it") == 7


class TestLog:
    def test_one_native_log_for_each_module(self) -> None:
        """TensorRT writes to the first one that it was given, also for what was given another."""
        one, two = fake_module(), fake_module()
        first, second, other = TensorRTLog(one), TensorRTLog(one), TensorRTLog(two)
        assert first.native is second.native
        assert other.native is not first.native
        first.native.log(Severity.ERROR, "wrong")
        first.native.log(Severity.ERROR, "wrong")
        first.native.log(Severity.WARNING, "odd")
        first.native.log(Severity.INFO, "fine")
        assert first.errors == second.errors == ("wrong",)
        assert first.warnings == second.warnings == ("odd",)
        assert other.errors == other.warnings == ()
        second.clear()
        assert (first.errors, second.errors) == (("wrong",), ())

    def test_levels(self, caplog: pytest.LogCaptureFixture) -> None:
        log = TensorRTLog(fake_module())
        with caplog.at_level(logging.DEBUG, "quantlab.tensorrt"):
            for severity in Severity:
                log.native.log(severity, severity.name)
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("ERROR", "INTERNAL_ERROR"), ("ERROR", "ERROR"), ("WARNING", "WARNING"), ("INFO", "INFO"),
            ("DEBUG", "VERBOSE"),
        ]  # fmt: skip

    def test_nothing_passes_through_the_binding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        log = TensorRTLog(fake_module())
        monkeypatch.setattr("quantlab.engines.tensorrt.log.LOGGER.log", interrupted)
        log.native.log(Severity.ERROR, "wrong")
        assert log.errors == ()

    def test_two_threads(self) -> None:
        module = fake_module()
        log = TensorRTLog(module)
        threads = [
            threading.Thread(target=lambda: [TensorRTLog(module).native.log(Severity.INFO, "x") for _ in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.native.log(Severity.ERROR, "seen")
        assert log.errors == ("seen",)


@pytest.mark.parametrize(
    ("line", "got", "hint"),
    [
        (
            "([tactic.cpp:16: choose] no tactics to implement it within workspace limit. In x at /_src/b.cpp:2012)",
            "(no tactics to implement it within workspace limit.)",
            "--workspace",
        ),
        ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", "out of memory", "MAX"),
        ("Requested amount of GPU memory (4294967296 bytes) could not be allocated", "could not be", "--workspace"),
        ("Unable to load library: libnvinfer_lean.so.1: cannot open", "lean", "--version-compatible"),
        ("Error Code 35: CUDA driver version is insufficient for CUDA runtime version", "insufficient", "a GPU"),
        ("dtype must be float/half/bf16/fp8", "dtype", "another precision"),
        (
            "Myelin (MyelinCheckException: cudnn_impl.cpp:89: CHECK(dtype == myelinTypeFloat || dtype == m) failed.)",
            "CHECK(dtype == myelinTypeFloat",
            "TensorRT-RTX 1.7 or later, keep them out with --exclude, or build fp8 or fp16",
        ),
        ("something that nobody saw before", "something", "--debug"),
    ],
)
def test_words_for_what_went_wrong(line: str, got: str, hint: str) -> None:
    module = fake_module()
    session = Session(Flavour("tensorrt", module), TensorRTLog(module), None)
    session.log.native.log(Severity.ERROR, line)
    error = _build_error(session, "tensorrt-fp16")
    assert isinstance(error, EngineBuildError)
    assert error.what == "TensorRT 10.16.1 cannot build tensorrt-fp16"
    assert got in str(error.got)
    assert ".cpp:2012" not in str(error.got)
    assert hint in str(error.hint)


def test_a_build_without_a_reason() -> None:
    module = fake_module()
    error = _build_error(Session(Flavour("tensorrt", module), TensorRTLog(module), None), "tensorrt-fp16")
    assert error.got == "it gave no reason"


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_builders_are_made_without_their_library(backend: str) -> None:
    made = builder_for(backend)
    assert isinstance(made, TensorRTBuilder)
    assert made.backend == backend


def test_other_backends_do_not_import_tensorrt() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from quantlab.workflow.build import builder_for; builder_for('onnxruntime');"
        "print([m for m in sys.modules if m.startswith(('tensorrt', 'pycuda', 'quantlab.engines.tensorrt.builder'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
