r"""Latency of INT8 in OpenVINO and in ONNX Runtime on the CPU, by both rules of quantization, side by side.

    python benchmarks/openvino_cpu.py                                     # the bundled models
    python benchmarks/openvino_cpu.py --model build/el0/efficientnet-lite0.onnx --preprocess efficientnet-lite \
        --data build/photos/calibration

Every model is calibrated once (``mse``). All variants are timed in turn (`quantlab.harness.latency`), first with FP32
in ONNX Runtime as the reference, then with FP32 in OpenVINO. ``symmetric`` is the target ``tensorrt``, ``uint8`` the
target ``onnxruntime``. SQNR is that of the first output against FP32 in ONNX Runtime, on 64 images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from quantlab import CalibrateSettings, DataRequest, Silent, calibrate, open_data, open_model
from quantlab.calibrators import CalibrationTable
from quantlab.datasets import SAMPLE_MODELS, Dataset, batches, sample_data, sample_model
from quantlab.engines.kernels import KernelCount
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder
from quantlab.engines.openvino import OpenVinoBuilder
from quantlab.engines.protocol import Engine
from quantlab.engines.variant import Variant
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.harness.latency import time_engines
from quantlab.harness.measurement import Latency
from quantlab.harness.timings import LatencySettings
from quantlab.precision import Precision

BUILDERS = (OnnxRuntimeBuilder(), OpenVinoBuilder())
WANTED = (
    ("fp32", Precision.FP32, TENSORRT),
    ("bf16", Precision.BF16, TENSORRT),
    ("int8 symmetric", Precision.INT8, TENSORRT),
    ("int8 uint8", Precision.INT8, ONNXRUNTIME),
    ("int8-weights", Precision.INT8_WEIGHTS, TENSORRT),
)
N_IMAGES = 64


def engines_of(prepared: Prepared, table: CalibrationTable, folder: Path, threads: int) -> dict[str, Engine]:
    """Every variant that is native, or INT8; by backend and kind."""
    found: dict[str, Engine] = {}
    for builder in BUILDERS:
        for name, precision, target in WANTED:
            variant = Variant(prepared, builder.backend, precision, target, table)
            if builder.supports(variant) is None and (builder is BUILDERS[1] or precision is not Precision.BF16):
                path = builder.build(variant, folder / target.name)
                found[f"{builder.backend} {name}"] = builder.load(path, threads)
    return found


def sqnr_db(reference: Engine, engine: Engine, dataset: Dataset) -> float:
    """SQNR of the first output on the first images."""
    signal = noise = 0.0
    for number, batch in enumerate(batches(dataset, 16)):
        if number * 16 >= N_IMAGES:
            break
        expected = np.asarray(reference.run(batch.inputs)[reference.outputs[0]], np.float64)
        got = np.asarray(engine.run(batch.inputs)[engine.outputs[0]], np.float64)
        signal += float(np.sum(expected * expected))
        noise += float(np.sum((got - expected) ** 2))
    return float("inf") if noise == 0 else float(10.0 * np.log10(signal / noise))


def ratio(latency: Latency) -> str:
    bounds = latency.ratio_interval
    return f"{latency.ratio:.2f} [{bounds.low:.2f}, {bounds.high:.2f}]"


def measure(
    engines: dict[str, Engine], reference: str, dataset: Dataset, seconds: float
) -> tuple[dict[str, Latency], str]:
    """Latencies against a reference at batch 1, and the A/A interval."""
    inputs = next(iter(batches(dataset, 1))).inputs
    calls = {name: (lambda engine=engine: engine.run(inputs)) for name, engine in engines.items()}
    timings = time_engines(calls, reference, 1, LatencySettings(seconds=seconds))
    floor = timings.noise_floor
    return dict(timings.latencies), f"[{floor.low:.3f}, {floor.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", help="calibration images")
    parser.add_argument("--preprocess", help="preset or file, if the model does not state it")
    parser.add_argument("--limit", type=int, default=128, help="calibration images at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing, for each reference")
    options = parser.parse_args()
    models = [options.model] if options.model else [sample_model(name) for name in SAMPLE_MODELS]
    data = options.data or str(sample_data("calibration"))
    for path in models:
        prepared = open_model(path, {}, Silent())
        request = DataRequest(data, limit=options.limit, preprocess=options.preprocess)
        images, preprocess = open_data(prepared.model, request, Silent())
        table, _ = calibrate(prepared, images, preprocess, CalibrateSettings("mse", 99.99, 2), Silent())
        with tempfile.TemporaryDirectory() as folder:
            for name in (TENSORRT.name, ONNXRUNTIME.name):
                (Path(folder) / name).mkdir()
            engines = engines_of(prepared, table, Path(folder), options.threads)
            own = {name: engine for name, engine in engines.items() if name.startswith("openvino")}
            plain, floor = measure(engines, "onnxruntime fp32", images, options.seconds)
            beside, own_floor = measure(own, "openvino fp32", images, options.seconds)
            print(f"\n{path.stem}, {options.threads} threads, batch 1; A/A {floor} and {own_floor}\n")
            print("| variant | proved | integer kernels | SQNR dB | median ms | to ORT FP32 | to OpenVINO FP32 |")
            print("| --- | --- | --- | --- | --- | --- | --- |")
            for name, engine in engines.items():
                count = KernelCount.stated(engine.sidecar.proof)
                cells = [
                    name,
                    str(engine.sidecar.proved or "not"),
                    f"{count.integer} of {count.quantized}" if count else "-",
                    f"{sqnr_db(engines['onnxruntime fp32'], engine, images):.1f}",
                    f"{plain[name].median_ms:.3f}",
                    ratio(plain[name]),
                    ratio(beside[name]) if name in beside else "-",
                ]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
