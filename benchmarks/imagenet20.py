"""EfficientNet-Lite0 before and after INT8 on the 20 labelled ImageNet images of PyPI's ``foolbox``.

    python benchmarks/efficientnet_lite0.py --out build/el0          # needs PyTorch
    python benchmarks/natural_photos.py --out build/photos
    pip download --no-deps foolbox==3.3.4 -d build && unzip -d build build/foolbox-3.3.4-*.whl 'foolbox/data/*'
    python benchmarks/imagenet20.py --model build/el0/efficientnet-lite0.onnx \
        --calibration build/photos/calibration --foolbox build/foolbox/data --out build/imagenet20

Calibrates on the photos, builds FP32 and INT8 for both targets, and prints top-1 on the 20 images, whose labels are
in their file names. Exit code 1 if a variant is right on fewer than 16.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path

from quantlab import Comparison

NEEDED = 16


def quantlab(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "quantlab", *map(str, arguments), "--quiet"], check=True, stdout=subprocess.PIPE
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--foolbox", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    images = options.out / "images"
    images.mkdir(parents=True, exist_ok=True)
    names = sorted(options.foolbox.glob("imagenet_*"))
    for path in names:
        shutil.copy(path, images)
    with (options.out / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([path.name, path.stem.rpartition("_")[2]] for path in names)
    failed = False
    for target in ("tensorrt", "onnxruntime"):
        table, engines, result = (options.out / f"{kind}-{target}" for kind in ("table", "engines", "comparison"))
        quantlab("calibrate", "--model", options.model, "--data", options.calibration, "-o", table, "--target", target)
        quantlab(
            "build", "--model", options.model, "--table", table / "calibration.json", "--target", target,
            "--precisions", "fp32,int8", "-o", engines,
        )  # fmt: skip
        quantlab(
            "compare", engines, "--data", images, "--labels", options.out / "labels.csv", "--latency-seconds", 0,
            "-o", result,
        )  # fmt: skip
        for variant in Comparison.load(result / "comparison.json").variants:
            counts = variant.classification
            if counts is None:
                raise SystemExit(f"{variant.name} gives no class scores")
            score = f"top-1 {counts.top1}/{counts.n}, SQNR {variant.outputs[0].sqnr_db:.1f} dB"
            print(f"{target:<12} {variant.name:<24} {score}")
            failed |= counts.top1 < NEEDED
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
