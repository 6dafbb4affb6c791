r"""Ranges from histograms beside those from all values in float64, tensor by tensor.

    python benchmarks/exactness.py --model build/el0/efficientnet-lite0.onnx --preprocess efficientnet-lite \
        --data build/photos/calibration

For every observed activation of a few images: the largest deviation of the 99.99 percentile at either end, of the
number of linear bins kept by the KL search (128 levels), and of amax by ``mse`` under symmetric INT8, where the values
themselves are quantized to 61 ranges within 3 % of it; and by how much more error it has than the best of those.
Tensors for which a method falls back to min-max are left out of its row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab import DataRequest, Silent, open_data, open_model
from quantlab.calibrators import INT8_SYMMETRIC, UINT8_AFFINE, MeanSquaredError, Percentile
from quantlab.calibrators.entropy import bin_width, kl_divergences, kl_threshold
from quantlab.engines.observation import observe, observed_tensors
from quantlab.graph.model import open_session

LEVELS = 128


def percentile_deviation(values: NDArray[np.float64], low: float, high: float, dropped: float) -> float:
    """Largest relative deviation from the values that stand at both ends after sorting."""
    ordered = np.sort(values)
    clipped = int(ordered.size * dropped + 1e-9)
    one_sided = ordered[0] >= 0.0 or ordered[-1] <= 0.0
    clipped = clipped if one_sided else int(ordered.size * dropped / 2 + 1e-9)
    ends = [(high, ordered[-1 - clipped])] if ordered[-1] > 0.0 else []
    ends += [(low, ordered[clipped])] if ordered[0] < 0.0 else []
    return max(abs(got - expected) / abs(expected) for got, expected in ends if expected)


def kl_deviation(values: NDArray[np.float64], threshold: float) -> float:
    """Bins between a threshold and that of the values' own linear histogram."""
    magnitudes = np.abs(values[values != 0.0])
    amax = float(magnitudes.max())
    width = bin_width(amax)
    bins = int(np.ceil(amax / width)) if amax % width else int(amax / width)
    counts = np.bincount(np.minimum((magnitudes / width).astype(np.int64), bins - 1), minlength=bins)
    divergences = kl_divergences(counts.astype(np.float64), LEVELS)
    kept = LEVELS + len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return abs(min((kept + 0.5) * width, amax) - threshold) / width


def mse_deviation(values: NDArray[np.float64], amax: float) -> tuple[float, float]:
    """Relative distance of amax from the best of 61 within 3 % of it, and its relative excess of error."""
    shares = np.linspace(0.97, 1.03, 61)
    shares = shares[(shares <= 1.0) | (amax * shares <= np.abs(values).max())]  # no range exceeds what was seen
    errors = []
    for share in shares:
        scale = amax * share / 127.0
        errors.append(float(np.mean((values - np.clip(np.rint(values / scale), -128, 127) * scale) ** 2)))
    best = int(np.argmin(errors))
    return float(abs(shares[best] - 1.0)), errors[int(np.argmin(np.abs(shares - 1.0)))] / errors[best] - 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess")
    parser.add_argument("--images", type=int, default=3)
    options = parser.parse_args()
    prepared = open_model(options.model, {}, Silent())
    request = DataRequest(options.data, limit=options.images, preprocess=options.preprocess)
    dataset, _ = open_data(prepared.model, request, Silent())
    names = observed_tensors(prepared)
    histograms = observe(prepared, dataset, names, 1, Silent())
    feeds = [{name: value[None] for name, value in sample.inputs.items()} for sample in dataset]
    fetched = [name for name in names if name not in feeds[0]]
    session = open_session(prepared.model, threads=1, outputs=fetched)
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for feed in feeds:
        for name, value in (*zip(fetched, session.run(fetched, feed), strict=True), *feed.items()):
            parts[name].append(np.asarray(value, np.float64).reshape(-1))
    found: dict[str, list[tuple[float, str]]] = {"percentile": [], "entropy, bins": [], "mse": [], "mse, error": []}
    for name in names:
        values, distribution = np.concatenate(parts.pop(name)), histograms[name].distribution()
        chosen = Percentile().choose(distribution, UINT8_AFFINE)
        if chosen.fallback is None:
            found["percentile"].append((percentile_deviation(values, chosen.low, chosen.high, 1e-4), name))
        searched = kl_threshold(distribution, LEVELS)
        if searched.meaningless is None:
            found["entropy, bins"].append((kl_deviation(values, searched.threshold), name))
        best = MeanSquaredError().choose(distribution, INT8_SYMMETRIC)
        if best.fallback is None:
            distance, excess = mse_deviation(values, best.high)
            found["mse"].append((distance, name))
            found["mse, error"].append((excess, name))
    print(f"{options.model.name}, {len(feeds)} images, {len(names)} tensors")
    for method, rows in found.items():
        unit, limit = (1.0, 1.0) if "bins" in method else (100.0, 0.005)
        mark = "" if "bins" in method else " %"
        worst = ", ".join(f"{unit * value:.3f}{mark} ({name})" for value, name in sorted(rows, reverse=True)[:3])
        beyond = sum(value > limit for value, _ in rows)
        print(f"{method:<14} {len(rows):>3} tensors, {beyond} beyond {unit * limit:g}{mark}; worst {worst}")


if __name__ == "__main__":
    main()
