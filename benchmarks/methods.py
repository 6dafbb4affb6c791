r"""SQNR at the model's outputs by range method, on evaluation images that calibration has not seen.

    python benchmarks/methods.py                                     # the bundled models
    python benchmarks/methods.py --model build/el0/efficientnet-lite0.onnx --preprocess efficientnet-lite \
        --data build/photos/calibration --evaluation build/photos/evaluation

For each target the model is calibrated once with method ``auto``; its table holds every method's ranges, so all five
INT8 models come from the same histograms. INT8 runs in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from quantlab import CalibrateSettings, DataRequest, Silent, calibrate, open_data, open_model
from quantlab.calibrators import METHOD_NAMES, CalibrationTable
from quantlab.datasets import SAMPLE_MODELS, Dataset, batches, sample_data, sample_model
from quantlab.graph.model import open_session
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import quantize_model
from quantlab.graph.targets import TARGETS, TargetProfile


def sqnr_db(prepared: Prepared, table: CalibrationTable, target: TargetProfile, dataset: Dataset) -> float:
    """SQNR of the first output over the data set."""
    proto = quantize_model(prepared.model, table, target).proto
    reference = open_session(prepared.model, threads=0)
    quantized = open_session(prepared.model.with_proto(proto), threads=0)
    signal = noise = 0.0
    for batch in batches(dataset, prepared.fixed_batch or 16):
        expected = np.asarray(reference.run(None, batch.inputs)[0], np.float64)
        got = np.asarray(quantized.run(None, batch.inputs)[0], np.float64)
        signal += float(np.sum(expected * expected))
        noise += float(np.sum((got - expected) ** 2))
    return float(10.0 * np.log10(signal / noise))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", help="calibration images")
    parser.add_argument("--evaluation", help="other images")
    parser.add_argument("--preprocess", help="preset or file, if the model does not state it")
    parser.add_argument("--limit", type=int, default=512, help="calibration images at most")
    options = parser.parse_args()
    models = [options.model] if options.model else [sample_model(name) for name in SAMPLE_MODELS]
    data = options.data or str(sample_data("calibration"))
    evaluation = options.evaluation or str(sample_data("evaluation"))
    print(f"{'model':<24} {'target':<12} " + " ".join(f"{name:>10}" for name in (*METHOD_NAMES, "auto")) + "  seconds")
    for path in models:
        prepared = open_model(path, {}, Silent())
        images, preprocess = open_data(
            prepared.model, DataRequest(data, limit=options.limit, preprocess=options.preprocess), Silent()
        )
        others, _ = open_data(prepared.model, DataRequest(evaluation, preprocess=options.preprocess), Silent())
        for target in TARGETS.values():
            start = time.perf_counter()
            settings = CalibrateSettings("auto", 99.99, 2, target)
            table, _ = calibrate(prepared, images, preprocess, settings, Silent())
            seconds = time.perf_counter() - start
            names = (*METHOD_NAMES, "auto")
            found = [sqnr_db(prepared, table.with_method(name), target, others) for name in names]
            print(f"{path.stem:<24} {target.name:<12} " + " ".join(f"{value:10.2f}" for value in found), end="")
            print(f"  {seconds:7.1f}   {table.auto}", flush=True)


if __name__ == "__main__":
    main()
