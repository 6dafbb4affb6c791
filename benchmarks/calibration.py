"""Time and memory of calibration against plain inference over the same images, decoding included.

    python benchmarks/calibration.py --model build/el0/efficientnet-lite0.onnx --data build/photos/calibration

Every task runs in a process of its own, several times in turn; printed are the medians, and their ratio to plain ONNX
Runtime FP32 inference with the same number of threads. ``quantlab`` computes the ranges of all four methods for two
integer grids; ``quantlab min-max only`` is ``--minmax-only``; ``onnxruntime minmax`` is the calibrator of
``onnxruntime.quantization``, which gives minima and maxima. Model loading and preparation are outside the clock for
all; ``quantlab command`` is the whole command.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from quantlab import CalibrateSettings, DataRequest, Silent, calibrate, open_data, open_model
from quantlab.datasets import batches
from quantlab.graph.model import open_session, save_model
from quantlab.harness.environment import available_cpus, processor_name

TASKS = ("plain", "quantlab", "quantlab min-max only", "quantlab command", "onnxruntime minmax")


def plain(options: argparse.Namespace) -> Callable[[], object]:
    """Decode and run, one image at a time."""
    prepared = open_model(options.model, {}, Silent())
    dataset, _ = open_data(prepared.model, request(options), Silent())
    session = open_session(prepared.model, threads=options.threads)
    return lambda: [session.run(None, batch.inputs) for batch in batches(dataset, 1)]


def quantlab(options: argparse.Namespace) -> Callable[[], object]:
    """Histograms of all activations, then every method's ranges."""
    prepared = open_model(options.model, {}, Silent())
    dataset, preprocess = open_data(prepared.model, request(options), Silent())
    settings = CalibrateSettings("mse", 99.99, options.threads)
    return lambda: calibrate(prepared, dataset, preprocess, settings, Silent())


def quantlab_minmax(options: argparse.Namespace) -> Callable[[], object]:
    """Minima and maxima alone."""
    prepared = open_model(options.model, {}, Silent())
    dataset, preprocess = open_data(prepared.model, request(options), Silent())
    settings = CalibrateSettings("minmax", 99.99, options.threads, minmax_only=True)
    return lambda: calibrate(prepared, dataset, preprocess, settings, Silent())


def quantlab_command(options: argparse.Namespace) -> Callable[[], object]:
    """The whole command; its memory is that of the child process."""
    arguments = ["calibrate", "--model", options.model, "--data", options.data, "--limit", options.images]
    arguments += ["--threads", options.threads, "--quiet", "-o", Path(tempfile.mkdtemp()) / "out"]
    arguments += ["--preprocess", options.preprocess] if options.preprocess else []
    command = [sys.executable, "-m", "quantlab", *map(str, arguments)]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE)


def onnxruntime_minmax(options: argparse.Namespace) -> Callable[[], object]:
    """ONNX Runtime's own MinMax calibrator on the same prepared model, images and threads."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    prepared = open_model(options.model, {}, Silent())
    dataset, _ = open_data(prepared.model, request(options), Silent())

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = batches(dataset, 1)

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return dict(batch.inputs) if batch else None

    folder = Path(tempfile.mkdtemp())
    save_model(prepared.model.proto, folder / "model.onnx", prepared.model)
    session_options = onnxruntime.SessionOptions
    onnxruntime.SessionOptions = lambda: limited(session_options(), options.threads)
    calibrator = create_calibrator(
        folder / "model.onnx", augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip

    def work() -> object:
        calibrator.collect_data(Reader())
        return calibrator.compute_data()

    return work


def limited(options: object, threads: int) -> object:
    options.intra_op_num_threads = threads  # type: ignore[attr-defined]
    return options


def request(options: argparse.Namespace) -> DataRequest:
    return DataRequest(str(options.data), limit=options.images, threads=options.threads, preprocess=options.preprocess)


def run_task(options: argparse.Namespace) -> None:
    """In a process of its own: prepare, time, print JSON."""
    functions = dict(zip(TASKS, (plain, quantlab, quantlab_minmax, quantlab_command, onnxruntime_minmax), strict=True))
    work = functions[options.task](options)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    who = resource.RUSAGE_CHILDREN if options.task == "quantlab command" else resource.RUSAGE_SELF
    print(json.dumps({"seconds": seconds, "peak_mib": resource.getrusage(who).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preprocess", help="preset or file, if the model does not state it")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_task(options)
        return
    results: dict[str, list[dict[str, float]]] = {task: [] for task in options.tasks}
    shared = ["--model", options.model, "--data", options.data, "--images", options.images]
    shared += ["--threads", options.threads]
    shared += ["--preprocess", options.preprocess] if options.preprocess else []
    for _ in range(options.repeats):
        for task in options.tasks:
            command = [sys.executable, __file__, *map(str, shared), "--task", task]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[task].append(json.loads(done.stdout.splitlines()[-1]))
    versions = ", ".join(f"{name} {version(name)}" for name in ("quantlab", "onnxruntime", "numpy"))
    print(f"{processor_name()}, {available_cpus()} cpus, Python {platform.python_version()}, {versions}")
    print(f"{options.model.name}, {options.images} images, {options.threads} threads, median of {options.repeats}")
    floor = statistics.median(row["seconds"] for row in results[options.tasks[0]])
    print(f"{'task':<20} {'seconds':>8} {'min':>7} {'max':>7} {'ratio':>6} {'peak MiB':>9}")
    for task, rows in results.items():
        seconds = sorted(row["seconds"] for row in rows)
        median, peak = statistics.median(seconds), max(row["peak_mib"] for row in rows)
        print(f"{task:<20} {median:8.2f} {seconds[0]:7.2f} {seconds[-1]:7.2f} {median / floor:6.2f} {peak:9.0f}")


if __name__ == "__main__":
    main()
