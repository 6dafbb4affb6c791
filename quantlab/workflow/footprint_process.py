"""The process in which one engine is opened and run, to see what that costs; see `footprint`."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlab.engines.cuda import open_device
from quantlab.engines.tensorrt.flavour import FLAVOURS
from quantlab.errors import QuantlabError
from quantlab.memory import release_memory
from quantlab.workflow.build import builder_for, check_backend

_RESET_PEAK = "5"  # proc(5), /proc/[pid]/clear_refs: the peak becomes what is resident now
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LIBRARIES = {"onnxruntime": "onnxruntime", "onnxruntime-cuda": "onnxruntime"}


@dataclass(frozen=True, slots=True)
class Task:
    """What the process is to do.

    Attributes:
        engine: The engine file.
        backend: Its backend.
        threads: Of the engine on the CPU.
        batch: ``.npz`` file with the inputs, named by their numbers.
        inputs: Names of the inputs, in that order.
    """

    engine: str
    backend: str
    threads: int
    batch: str
    inputs: tuple[str, ...]

    def to_json(self) -> str:
        """As text for the process's stdin."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Taken:
    """What the engine took.

    Attributes:
        load_ms: Time to open it.
        first_run_ms: Time of its first run.
        peak_bytes: Largest resident memory above that before it was opened; None where the system does not tell.
        device_bytes: Memory that is no longer free on the GPU; None without one.
    """

    load_ms: float
    first_run_ms: float
    peak_bytes: int | None
    device_bytes: int | None


def take(task: Task) -> Taken:
    """Open and run the engine; meant for a process of its own.

    Raises:
        QuantlabError: As the builder's `load` and the engine's `run` raise them.
    """
    check_backend(task.backend)
    if task.backend in _LIBRARIES:
        importlib.import_module(_LIBRARIES[task.backend])
    builder = builder_for(task.backend)
    with np.load(task.batch) as stored:
        feed = {name: stored[str(number)] for number, name in enumerate(task.inputs)}
    free = _free_on_gpu(task.backend)
    before = free() if free is not None else 0
    release_memory()
    gc.disable()
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    resident = _status("VmRSS")
    started = time.perf_counter_ns()
    engine = builder.load(Path(task.engine), task.threads)
    opened = time.perf_counter_ns()
    engine.run(feed)
    first = time.perf_counter_ns()
    engine.run(feed)
    peak = _status("VmHWM")
    return Taken(
        load_ms=(opened - started) / 1e6,
        first_run_ms=(first - opened) / 1e6,
        peak_bytes=None if peak is None or resident is None else max(peak - resident, 0),
        device_bytes=None if free is None else max(before - free(), 0),
    )


def _free_on_gpu(backend: str) -> Callable[[], int] | None:
    """Asks how much memory of the GPU is free; only engines of TensorRT are on the GPU by themselves."""
    return open_device(0).free_bytes if backend in FLAVOURS else None


def _status(key: str) -> int | None:
    """A line of the process's status, in bytes; None where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith(f"{key}:")), None)
    return 1024 * int(found[1]) if found is not None else None


def main() -> None:
    """Read the task from stdin, write what it took, or an error, to the file that is named."""
    document = json.load(sys.stdin)
    task = Task(**{**document, "inputs": tuple(document["inputs"])})
    try:
        answer: dict[str, object] = dataclasses.asdict(take(task))
    except QuantlabError as error:
        answer = {"error": f"{error.what}: {error.got}" if error.got else error.what}
    Path(sys.argv[1]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
