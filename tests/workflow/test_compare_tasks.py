"""Models that detect, segment and measure, quantized and compared end to end by the command line."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from painted_images import COLOURS, PREPROCESS, SIDE, paint, write_detector, write_meter, write_segmenter
from PIL import Image

from quantlab.cli.main import main
from quantlab.degradation import DegradationCode
from quantlab.harness.comparison import Comparison, VariantResult
from quantlab.harness.samples import read_samples
from quantlab.harness.tasks.average_precision import Pooled
from quantlab.harness.tasks.matches import MatchedImage

N = 40


def run(*arguments: object) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0, text.getvalue()
    return text.getvalue()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and each model as FP32 and INT8."""
    folder = tmp_path_factory.mktemp("studio")
    paint(folder / "calibration", 12, seed=1)
    paint(folder / "images", N, seed=2)
    (folder / "box.toml").write_text(PREPROCESS)
    for name, write in (("detector", write_detector), ("segmenter", write_segmenter), ("meter", write_meter)):
        model = write(folder / f"{name}.onnx")
        common = ["--model", model, "--target", "onnxruntime", "--quiet"]
        data = ["--data", folder / "calibration", "--preprocess", folder / "box.toml", "--threads", 1]
        run("calibrate", *common, *data, "-o", folder / name / "calibration")
        table = folder / name / "calibration" / "calibration.json"
        run("build", *common, "--table", table, "--precisions", "fp32,int8", "-o", folder / name / "engines")
    return folder


def compare(studio: Path, model: str, *arguments: object, data: str = "images") -> tuple[Comparison, Path]:
    out = studio / model / "comparison"
    run(
        "compare", studio / model / "engines", "--data", studio / data, "--preprocess", studio / "box.toml",
        "--latency-seconds", 0, "--threads", 1, "--batch-size", 7, "-o", out, *arguments,
    )  # fmt: skip
    return Comparison.load(out / "comparison.json"), out


def value(result: VariantResult, figure: str) -> float:
    return next(score.value for score in result.scores if score.figure == figure and score.slice is None)


def detect(studio: Path, labels: str = "images.json", *arguments: object) -> tuple[Comparison, Path]:
    options = ("--task", "detect", "--task-option", "decoder=yolov8", "--labels", studio / labels)
    return compare(studio, "detector", *options, *arguments)


def independent_figures(studio: Path) -> tuple[float, float]:
    """AP and AP50 of the FP32 model by ONNX Runtime, Pillow and pycocotools alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    session = onnxruntime.InferenceSession(studio / "detector.onnx", providers=["CPUExecutionProvider"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(studio / "images.json"))
        results = []
        for image in truth.dataset["images"]:
            pixels = Image.open(studio / "images" / image["file_name"])
            width, height = pixels.size
            inner = round(width * SIDE / max(pixels.size)), round(height * SIDE / max(pixels.size))
            left, top = (SIDE - inner[0]) // 2, (SIDE - inner[1]) // 2
            canvas = Image.new("RGB", (SIDE, SIDE), (20, 20, 20))
            canvas.paste(pixels.resize(inner, Image.Resampling.BILINEAR), (left, top))
            fed = (np.asarray(canvas, np.float32) / 255).transpose(2, 0, 1)[None]
            ((output,),) = (session.run(None, {"x": fed})[0].astype(float),)
            for number in range(3):
                cx, cy, w, h, score = *output[:4, number], output[4 + number, number]
                if score <= 0.001:
                    continue
                x1, x2 = (np.clip((cx + s * w / 2 - left) * width / inner[0], 0, width) for s in (-1, 1))
                y1, y2 = (np.clip((cy + s * h / 2 - top) * height / inner[1], 0, height) for s in (-1, 1))
                results.append({"image_id": image["id"], "category_id": 3 * number + 4, "score": float(score),
                                "bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]})  # fmt: skip
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return 100 * float(evaluator.stats[0]), 100 * float(evaluator.stats[1])


def test_detector(studio: Path) -> None:
    comparison, out = detect(studio)
    floating, quantized = comparison.variants
    assert comparison.task == "detect" and comparison.n_samples == N
    assert (value(floating, "map"), value(floating, "map50")) == pytest.approx(independent_figures(studio), abs=1e-4)
    assert value(floating, "map50") > 95 and value(floating, "map") > 60, "it does find them"
    for score in quantized.scores:
        assert score.difference == pytest.approx(score.value - score.reference)
        assert score.n == N and score.interval is not None
        assert score.interval.low <= score.difference <= score.interval.high
    assert value(quantized, "map") != value(floating, "map"), "8 bits are not enough for coordinates"
    table = read_samples(out / "samples.parquet")
    for result in comparison.variants:
        texts = table[table["variant"] == result.name]["matches"]
        images = [MatchedImage.from_json(text) for text in texts]
        again = Pooled(list(images)).average_precision()(np.ones((1, N)))
        assert again[0] == pytest.approx(value(result, "map"), abs=1e-9)


def test_samples_without_annotations(studio: Path) -> None:
    document = json.loads((studio / "images.json").read_text())
    kept = document["images"][: N - 8]
    ids = {image["id"] for image in kept}
    annotations = [one for one in document["annotations"] if one["image_id"] in ids]
    (studio / "part.json").write_text(json.dumps(document | {"images": kept, "annotations": annotations}))
    comparison, _ = detect(studio, "part.json")
    assert {score.n for variant in comparison.variants for score in variant.scores} == {N - 8}
    (told,) = [d for d in comparison.degradations if d.code is DegradationCode.UNLABELLED_SAMPLES]
    assert told.count == 8 and "have no entry in COCO file" in told.message


def test_segmenter(studio: Path) -> None:
    options = ("--task", "segment", "--labels", studio / "images.json")
    comparison, _ = compare(studio, "segmenter", *options)
    floating, quantized = comparison.variants
    assert value(floating, "miou") > 75 and value(floating, "pixel_accuracy") > 95
    assert value(quantized, "miou") != value(floating, "miou")
    assert all(score.interval is not None for score in quantized.scores)
    folder = studio / "masks"
    folder.mkdir(exist_ok=True)
    document = json.loads((studio / "images.json").read_text())
    for image in document["images"]:
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        for one in document["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = one["bbox"]
                mask[y : y + h, x : x + w] = 1 + (one["category_id"] - 4) // 3
        Image.fromarray(mask).save(folder / image["file_name"])
    again, _ = compare(studio, "segmenter", "--task", "segment", "--labels", folder)
    for one, other in zip(comparison.variants, again.variants, strict=True):
        assert value(one, "miou") == pytest.approx(value(other, "miou"), abs=1e-9), "masks say the same as polygons"


def test_regression_and_a_metric_of_ones_own(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["file," + ",".join(COLOURS)]
    for path in sorted((studio / "images").glob("*.png")):
        canvas = Image.new("RGB", (SIDE, SIDE), (20, 20, 20))
        with Image.open(path) as image:
            inner = tuple(round(edge * SIDE / max(image.size)) for edge in image.size)
            corner = tuple((SIDE - edge) // 2 for edge in inner)
            canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
        means = np.asarray(canvas, np.float64).mean(axis=(0, 1)) / 255
        rows.append(f"{path.name}," + ",".join(f"{mean:.9f}" for mean in means))
    (studio / "means.csv").write_text("\n".join(rows))
    comparison, _ = compare(studio, "meter", "--task", "regress", "--labels", studio / "means.csv")
    floating, quantized = comparison.variants
    assert value(floating, "mae") < 1e-6 < value(quantized, "mae") < 0.01
    assert value(floating, "r2") == pytest.approx(1.0) and value(quantized, "r2") < 1.0
    assert quantized.classification is None, "three values a sample are no scores of classes here"
    (studio / "quantlab_test_means.py").write_text(
        "import numpy as np\n"
        "def miss(outputs, batch):\n"
        "    return np.abs(outputs['means'] - batch.inputs['x'].mean(axis=(2, 3))).mean(axis=1)\n"
        "miss.higher_is_better = False\n"
    )
    monkeypatch.syspath_prepend(str(studio))
    monkeypatch.delitem(sys.modules, "quantlab_test_means", raising=False)
    own, _ = compare(studio, "meter", "--metric", "quantlab_test_means:miss")
    assert own.task == "custom"
    for one, other in zip(comparison.variants, own.variants, strict=True):
        assert value(other, "miss") == pytest.approx(value(one, "mae"), abs=1e-6)
