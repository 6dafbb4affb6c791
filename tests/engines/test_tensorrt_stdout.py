"""Standard output stays this program's own while TensorRT works, whatever its libraries print there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import ctypes, os, sys, threading
from quantlab.engines.tensorrt.stdout import stdout_to_stderr

library = ctypes.CDLL(None)

def noise(text):
    os.write(1, f"{text} raw\\n".encode())
    library.printf(f"{text} buffered\\n".encode())
"""


def run(code: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", before + PROGRAM + textwrap.dedent(code)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # C code obeys it, too
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    return done


def test_what_c_code_prints_goes_to_standard_error() -> None:
    """A pipe's buffers are written late: those from before belong to standard output, those from meanwhile do not."""
    done = run("""
        library.printf(b"before\\n")
        print("python before")
        with stdout_to_stderr():
            noise("meanwhile")
        print("python after")
        noise("after")
    """)
    assert sorted(done.stdout.splitlines()) == [
        "after buffered", "after raw", "before", "python after", "python before",
    ]  # fmt: skip
    assert sorted(done.stderr.splitlines()) == ["meanwhile buffered", "meanwhile raw"]


def test_it_is_restored_after_an_exception_and_may_be_nested() -> None:
    done = run("""
        try:
            with stdout_to_stderr():
                with stdout_to_stderr():
                    noise("inner")
                noise("outer")
                raise ValueError
        except ValueError:
            pass
        noise("after")
    """)
    assert sorted(done.stdout.splitlines()) == ["after buffered", "after raw"]
    assert len(done.stderr.splitlines()) == 4


def test_the_last_of_several_threads_restores_it() -> None:
    done = run("""
        entered, left = threading.Event(), threading.Event()

        def work():
            with stdout_to_stderr():
                entered.set()
                left.wait(10)
                noise("thread")

        thread = threading.Thread(target=work)
        thread.start()
        entered.wait(10)
        with stdout_to_stderr():
            noise("main")
        noise("still")
        left.set()
        thread.join()
        noise("after")
    """)
    assert sorted(done.stdout.splitlines()) == ["after buffered", "after raw"]
    assert len(done.stderr.splitlines()) == 6


@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_streams(closed: str) -> None:
    run(
        """
        with stdout_to_stderr():
            pass
        assert len(os.listdir("/proc/self/fd")) == files
        """,
        before=f"import os; os.close({closed}); files = len(os.listdir('/proc/self/fd'))\n",
    )


def test_a_build_that_prints_leaves_json_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The command line, with a builder that prints and fails as TensorRT-RTX 1.6.1 does."""
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13 (Linux on x86-64)")
    folder = tmp_path_factory.mktemp("json")
    done = run(
        f"""
        import json
        import quantlab.engines.tensorrt.builder as builder
        from quantlab.cli.main import main
        from quantlab.datasets import sample_model

        genuine = builder.make_config

        def noisy(*arguments, **named):
            noise("Internal Error: MyelinCheckException:")
            return genuine(*arguments, **named)

        builder.make_config = noisy
        builder.open_device = lambda: (_ for _ in ()).throw(builder.BackendUnavailable("no GPU"))
        arguments = "build --backend tensorrt-rtx --precisions fp32 --json --optimization-level 0 --model".split()
        main([*arguments, str(sample_model("fashion-resnet")), "-o", {str(folder)!r}])
        """
    )
    assert done.stdout.startswith("{")
    assert '"schema": "quantlab.build/1"' in done.stdout
    assert "MyelinCheckException" not in done.stdout
    assert done.stderr.count("MyelinCheckException") == 2
