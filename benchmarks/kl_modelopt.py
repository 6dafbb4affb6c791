"""KL thresholds of quantlab beside those of NVIDIA ModelOpt's torch calibrator, on the same values.

    pip install torch nvidia-modelopt
    python benchmarks/kl_modelopt.py --model build/el0/efficientnet-lite0.onnx --data build/photos/calibration

ModelOpt's ``HistogramCalibrator`` gets all values of a tensor in one piece, with its defaults (2,048 bins up to the
largest magnitude, thresholds from bin 128); quantlab gets them in pieces. ``same bins`` is quantlab's search on
ModelOpt's own histogram: what is left there is a difference of the search, the rest is one of the bins. Times are of
the search alone, best of three for quantlab, one run for ModelOpt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from modelopt.torch.quantization.calib.histogram import HistogramCalibrator
from numpy.typing import NDArray

from quantlab import DataRequest, Silent, open_data, open_model
from quantlab.calibrators import INT8_SYMMETRIC, Entropy, Histogram
from quantlab.calibrators.entropy import LEVELS, kl_divergences, kl_threshold
from quantlab.datasets import batches
from quantlab.engines.observation import observed_tensors
from quantlab.graph.model import open_session

Floats = NDArray[np.float32]
BINS = 2048


def synthetic() -> Iterator[tuple[str, Floats]]:
    """Laws that calibrators are usually shown on, a million values each, seeded."""
    rng = np.random.default_rng(2026)
    normal = rng.standard_normal(1_000_000).astype(np.float32)
    outliers = normal.copy()
    outliers[:100] *= 10
    yield "gauss", normal
    yield "laplace", rng.laplace(size=1_000_000).astype(np.float32)
    yield "relu(gauss)", np.maximum(normal, 0)
    yield "gauss, 100 x 10", outliers


def activations(model: Path, data: Path, samples: int, tensors: int) -> Iterator[tuple[str, Floats]]:
    """Tensors spread evenly over a model, all their values over some samples."""
    prepared = open_model(model, {}, Silent())
    dataset, _ = open_data(prepared.model, DataRequest(str(data), limit=samples), Silent())
    names = observed_tensors(prepared)[1:]
    names = tuple(names[i] for i in np.unique(np.linspace(0, len(names) - 1, tensors).astype(int)))
    session = open_session(prepared.model, threads=1, outputs=names)
    runs = [session.run(names, dict(batch.inputs)) for batch in batches(dataset, 1)]
    for name, values in zip(names, zip(*runs, strict=True), strict=True):
        yield name, np.concatenate([value.ravel() for value in values])


def compare(name: str, values: Floats) -> str:
    """One line of the table."""
    calibrator = HistogramCalibrator(num_bins=BINS)
    calibrator.collect(torch.from_numpy(values))
    start = time.perf_counter()
    theirs = float(calibrator.compute_amax("entropy"))
    their_seconds = time.perf_counter() - start

    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    our_seconds = []
    for _ in range(3):
        distribution = histogram.distribution()
        start = time.perf_counter()
        found = kl_threshold(distribution, LEVELS)
        our_seconds.append(time.perf_counter() - start)
    ours = found.threshold

    counts = calibrator._calib_hist.numpy().astype(np.float64)
    counts[0] = counts[1]
    divergences = kl_divergences(counts, LEVELS)
    same = LEVELS + len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    width = distribution.amax / BINS
    chosen = Entropy().choose(distribution, INT8_SYMMETRIC)
    verdict = found.meaningless or ("min-max is used" if chosen.fallback else "")
    return (
        f"{name[-44:]:<44} {distribution.amax:9.4f} {theirs:9.4f} {ours:9.4f} {(ours - theirs) / width:8.1f} "
        f"{100 * (ours / theirs - 1):7.2f} % {same - theirs / width:9.1f} {1000 * their_seconds:9.0f} "
        f"{1000 * min(our_seconds):8.2f}  {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tensors", type=int, default=10)
    options = parser.parse_args()
    print(
        f"{'tensor':<44} {'amax':>9} {'ModelOpt':>9} {'quantlab':>9} {'bins':>8} {'':>9} {'same bins':>9} "
        f"{'ModelOpt':>9} {'quantlab':>8}\n{'':<101} {'ms':>9} {'ms':>8}"
    )
    for name, values in synthetic():
        print(compare(name, values), flush=True)
    if options.model:
        for name, values in activations(options.model, options.data, options.samples, options.tensors):
            print(compare(name, values), flush=True)


if __name__ == "__main__":
    main()
