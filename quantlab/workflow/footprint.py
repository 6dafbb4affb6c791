"""Memory and load time of engines, each measured in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantlab.engines.protocol import Arrays
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.footprint import Footprint
from quantlab.progress import Narrator, Silent
from quantlab.workflow.footprint_process import Taken, Task

_LONGEST_S = 900.0


def measure_footprints(
    paths: Sequence[Path],
    inputs: Arrays,
    threads: int,
    *,
    processes: int = 3,
    narrator: Narrator | None = None,
) -> tuple[Footprint, ...]:
    """Open and run each engine in processes that do nothing else, engine after engine in every round.

    Args:
        paths: Engine files with their sidecars.
        inputs: One batch by input name.
        threads: Of each engine on the CPU.
        processes: Processes for each engine.
        narrator: Told which round it is.

    Returns:
        One each, in the order of the files.

    Raises:
        ConfigError: If there are no processes.
        EngineMismatch: If a file is not what its sidecar says.
        MeasurementError: If an engine cannot be opened or run, or its process ends without a word.
    """
    if processes < 1:
        raise ConfigError("footprints need at least one process", got=processes, expected="1 or more")
    sidecars = [read_sidecar(path) for path in paths]
    taken: list[list[Taken]] = [[] for _ in paths]
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "inputs.npz"
        positional = {f"{number}": value for number, value in enumerate(inputs.values())}  # names may be any text
        with batch.open("wb") as file:
            np.savez(file, **positional)  # type: ignore[arg-type]  # the stubs take the arrays for allow_pickle
        for _ in (narrator or Silent()).track(range(processes), processes, "memory and load time"):
            for path, sidecar, found in zip(paths, sidecars, taken, strict=True):
                task = Task(str(path.resolve()), sidecar.backend, threads, str(batch), tuple(inputs))
                found.append(_run(task, sidecar, Path(folder) / "taken.json"))
    n = len(next(iter(inputs.values()))) if inputs else 0
    return tuple(_footprint(sidecar, n, threads, found) for sidecar, found in zip(sidecars, taken, strict=True))


def _run(task: Task, sidecar: Sidecar, answer: Path) -> Taken:
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "quantlab.workflow.footprint_process", str(answer)]
    try:
        done = subprocess.run(
            command, input=task.to_json(), capture_output=True, text=True, errors="replace", timeout=_LONGEST_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as cause:
        raise MeasurementError(f"{sidecar.name} did not load and run within {_LONGEST_S:.0f} s") from cause
    try:
        document: dict[str, Any] = json.loads(answer.read_bytes())
    except (OSError, ValueError) as cause:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise MeasurementError(
            f"the process that loads {sidecar.name} ended without an answer", got=f"exit {done.returncode}: {last}",
            hint="open the engine with quantlab compare to see more",
        ) from cause  # fmt: skip
    if "error" in document:
        raise MeasurementError(f"{sidecar.name} could not be loaded and run", got=str(document["error"]))
    return Taken(**document)


def _footprint(sidecar: Sidecar, batch_size: int, threads: int, taken: Sequence[Taken]) -> Footprint:
    return Footprint(
        name=sidecar.name,
        size_bytes=sidecar.size_bytes,
        batch_size=batch_size,
        threads=threads,
        load_ms=tuple(one.load_ms for one in taken),
        first_run_ms=tuple(one.first_run_ms for one in taken),
        peak_bytes=tuple(one.peak_bytes for one in taken if one.peak_bytes is not None),
        device_bytes=tuple(one.device_bytes for one in taken if one.device_bytes is not None),
    )
