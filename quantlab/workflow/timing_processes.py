"""Timing repeated in fresh processes: each opens the engines anew, and runs the whole protocol.

Where memory lies, how threads fall onto cores and what a runtime decides as it starts differ between processes and
stay for the life of one; a longer measurement in one process does not see it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives NumPy the names of bfloat16 and the FP8 types
import numpy as np

from quantlab.documents import dump_json, read_json
from quantlab.engines.protocol import Arrays
from quantlab.errors import ConfigError, ExitCode, MeasurementError, QuantlabError
from quantlab.harness.latency import LatencySettings, time_engines
from quantlab.harness.repetition import combine_timings
from quantlab.harness.timings import Timings
from quantlab.progress import Narrator, Silent
from quantlab.records import from_plain, to_plain
from quantlab.workflow.compare import open_engines

_REQUEST_SCHEMA = "quantlab.timing-request/1"
_RESULT_SCHEMA = "quantlab.timings/1"
_REQUEST, _RESULT, _INPUTS, _LOG = "request.json", "timings.json", "inputs.npz", "log.txt"
_LINES_OF_LOG = 4
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class _Input:
    """One input array of the archive, whose members are numbered: names may hold anything."""

    name: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Request:
    """What a process is to time."""

    paths: tuple[str, ...]
    reference: str
    inputs: tuple[_Input, ...]
    batch_size: int
    threads: int
    plugins: tuple[str, ...]
    settings: LatencySettings


def time_in_processes(
    paths: Sequence[Path],
    reference: str,
    inputs: Arrays,
    batch_size: int,
    settings: LatencySettings,
    *,
    processes: int = 3,
    threads: int = 2,
    plugins: Sequence[Path] = (),
    narrator: Narrator | None = None,
) -> Timings:
    """Time engine files in fresh processes, one after the other, and combine what they found.

    Args:
        paths: Engine files with sidecars.
        reference: Name of the engine that ratios are taken to.
        inputs: Arrays by input name, batch first.
        batch_size: Samples in them.
        settings: Of each process; each gets another seed, counted up from this one's.
        processes: How many.
        threads: Of each engine on the CPU.
        plugins: Libraries with operators that engines of TensorRT use.
        narrator: Told which process runs.

    Returns:
        See `quantlab.harness.repetition.combine_timings`.

    Raises:
        ConfigError: If there is no process to start.
        MeasurementError: If a process fails or dies, with its number and its last words.
    """
    if processes < 1:
        raise ConfigError("timing needs a process to run in", got=processes, expected="1 or more")
    narrator = narrator or Silent()
    kept = []
    with tempfile.TemporaryDirectory(prefix="quantlab-timing-") as folder:
        names = _write_inputs(Path(folder) / _INPUTS, inputs)
        for index in range(processes):
            narrator.say(f"timing in process {index + 1} of {processes} for about {settings.seconds:g} s")
            request = _Request(
                tuple(str(path.resolve()) for path in paths),
                reference,
                names,
                batch_size,
                threads,
                tuple(str(path.resolve()) for path in plugins),
                replace(settings, seed=settings.seed + index),
            )
            kept.append(_run_process(Path(folder), request, f"timing process {index + 1} of {processes}"))
    return combine_timings(kept)


def _write_inputs(path: Path, inputs: Arrays) -> tuple[_Input, ...]:
    for name, value in inputs.items():
        if value.dtype.hasobject:
            raise MeasurementError(
                f"input {name!r} cannot be handed to another process", got=value.dtype, expected="numbers or fixed text"
            )
    with path.open("wb") as file:
        np.savez(file, *(np.asarray(value) for value in inputs.values()))
    return tuple(_Input(name, value.dtype.name) for name, value in inputs.items())


def _read_inputs(path: Path, names: Sequence[_Input]) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {}
        for index, one in enumerate(names):
            value = archive[f"arr_{index}"]
            # Types that NumPy does not know itself come back as bare bytes.
            arrays[one.name] = value.view(np.dtype(one.dtype)) if value.dtype.kind == "V" else value
        return arrays


def _run_process(folder: Path, request: _Request, title: str) -> Timings:
    result = folder / _RESULT
    result.unlink(missing_ok=True)
    (folder / _REQUEST).write_text(dump_json({"schema": _REQUEST_SCHEMA, **to_plain(request)}), encoding="utf-8")
    # -P: the current folder of the user is no place to import from.
    command = [sys.executable, "-P", "-m", "quantlab.workflow.timing_processes", str(folder)]
    with (
        (folder / _LOG).open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as child,
    ):
        try:
            status = child.wait()
        except BaseException:  # an interrupt above all: no process outlives this one
            _end(child)
            raise
    if status != 0 or not result.is_file():
        raise MeasurementError(
            f"{title} {'died' if status < 0 else 'failed'}",
            got=_last_words(status, (folder / _LOG).read_text(encoding="utf-8", errors="replace")),
            hint=_hint(status),
        )
    document = read_json(result, _RESULT_SCHEMA, MeasurementError, "timings")
    document.pop("schema")
    return from_plain(Timings, document, title, MeasurementError)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _last_words(status: int, log: str) -> str:
    try:
        ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:
        ended = f"signal {-status}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "; ".join([ended, *lines[-_LINES_OF_LOG:]])


def _hint(status: int) -> str | None:
    if status == -signal.SIGKILL:
        return "the system may have run out of memory: all engines are open at once in each process"
    return None


def _serve(folder: Path) -> None:
    """What the process does."""
    document = read_json(folder / _REQUEST, _REQUEST_SCHEMA, MeasurementError, "timing request")
    document.pop("schema")
    request = from_plain(_Request, document, "timing request", MeasurementError)
    inputs = _read_inputs(folder / _INPUTS, request.inputs)
    plugins = tuple(map(Path, request.plugins))
    with open_engines([Path(path) for path in request.paths], request.threads, Silent(), plugins) as engines:
        calls = {engine.sidecar.name: (lambda run=engine.run: run(inputs)) for engine in engines}
        timings = time_engines(calls, request.reference, request.batch_size, request.settings)
    temporary = folder / f"{_RESULT}.part"
    temporary.write_text(dump_json({"schema": _RESULT_SCHEMA, **to_plain(timings)}), encoding="utf-8")
    temporary.replace(folder / _RESULT)


def _end_with_parent() -> None:
    """Nobody ever writes to the input; it ends when the process that waits for this one dies, however it died."""
    os.read(0, 1)
    os._exit(int(ExitCode.INTERRUPTED))


def main(arguments: Sequence[str]) -> int:
    """Entry point of a process: the folder that holds the request."""
    try:
        _serve(Path(arguments[0]))
    except QuantlabError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    return int(ExitCode.OK)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    raise SystemExit(main(sys.argv[1:]))
