"""Truths, settings and metrics of tasks that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from bad_case import Case, Prepare, args
from cli_bench import CLASSES, SIZE, Bench
from PIL import Image

from quantlab.errors import ExitCode

BAD = ExitCode.BAD_INPUT
USAGE = ExitCode.USAGE

COMPARE = args("compare --data eval --preprocess unit.toml --threads 1 --latency-seconds 0 -o out")
REGRESS = (*COMPARE, *args("--task regress --labels truths.csv"))
DETECT = (*COMPARE, *args("--task detect --labels truths.json --task-option decoder=yolov8"))
SEGMENT = (*COMPARE, *args("--task segment --labels truths.json"))


def taking(*steps: Prepare) -> Prepare:
    """The engines of the tiny model, its evaluation images, and then some steps."""

    def prepare(bench: Bench) -> None:
        bench.take("engines", "eval", "unit.toml")
        for step in steps:
            step(bench)

    return prepare


def rows(text: str) -> Prepare:
    return taking(lambda bench: bench.write("truths.csv", text))


def coco(**change: Any) -> Prepare:
    """An annotation of the first evaluation image, changed."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]} | change
    document = {
        "images": [{"id": 1, "file_name": "0/3.png", "height": SIZE, "width": SIZE}],
        "categories": [{"id": 1, "name": "colour"}],
        "annotations": [annotation],
    }
    return taking(lambda bench: bench.write("truths.json", json.dumps(document)))


def masks(value: int, mode: str = "L") -> Prepare:
    def write(bench: Bench) -> None:
        for label in range(CLASSES):
            (bench / f"masks/{label}").mkdir(parents=True)
            pixels = np.full((SIZE, SIZE), value, np.uint8)
            Image.fromarray(pixels).convert(mode).save(bench / f"masks/{label}/3.png")

    return taking(write)


TASKS = (
    Case("regress without truths", taking(), (*COMPARE, "--task", "regress"), USAGE, (r"needs truths", r"--labels")),
    Case(
        "values separated by semicolons",
        rows("file;a;b;c;d\n0/3.png;1;2;3;4\n"),
        REGRESS,
        BAD,
        (r"truths\.csv has a wrong row at line 1", r"file;a;b;c;d", r"separate the columns by commas or tabs"),
    ),
    Case("values not finite", rows("0/3.png,1,nan,3,4\n"), REGRESS, BAD, (r"line 1", r"nan", r"4 finite numbers")),
    Case(
        "values of other images",
        rows("z.png,1,2,3,4\n"),
        REGRESS,
        BAD,
        (r"no entry for any of the first", r"'z\.png'", r"'0/3\.png'"),
    ),
    Case("too few values", rows("0/3.png,1\n"), REGRESS, BAD, (r"one output of 1 value", r"y \(12, 4\)", r"\(N, 1\)")),
    Case(
        "columns of values that collide",
        rows("file,a,a.true,b,c\n0/3.png,1,2,3,4\n"),
        REGRESS,
        BAD,
        (r"has a wrong header", r"a,a\.true,b,c", r"a different name"),
    ),
    Case(
        "a column of values named as one of an output's",
        rows("file,y.cosine,a,b,c\n0/3.png,1,2,3,4\n"),
        REGRESS,
        BAD,
        (r"two columns of the file of samples are named 'y\.cosine'", r"output 'y'", r"rename"),
    ),
    Case("boxes without a decoder", coco(), DETECT[:-2], USAGE, (r"needs a decoder", r"decoder=yolov5")),
    Case("decoder misspelt", coco(), (*DETECT[:-1], "decoder=yolo8"), USAGE, (r"'yolo8'", r"did you mean 'yolov8'")),
    Case("decoder that does not fit", coco(), DETECT, BAD, (r"yolov8 needs one output of 3 axes", r"y \(12, 4\)")),
    Case("boxes in shares", coco(bbox=[0.1, 0.1, 0.5, 0.5]), DETECT, BAD, (r"beyond the first pixel", r"in pixels")),
    Case(
        "boxes as corners", coco(bbox=[2, 2, 8, 8]), DETECT, BAD, (r"outside its image", r"x 2 to 10", r"not corners")
    ),
    Case(
        "box of a huge number", coco(bbox=[1, 1, 4, 10**400]), DETECT, BAD, (r"annotation 0 has a wrong box", r"finite")
    ),
    Case("category missing", coco(category_id=9), DETECT, BAD, (r"refers to a category", r"id 9")),
    Case("masks with colours", masks(1, "RGB"), (*SEGMENT[:-1], "masks"), BAD, (r"which output holds", r"expected")),
    Case(
        "masks missing", taking(), (*SEGMENT[:-1], "masks"), BAD, (r"no masks in mask folder masks", r"no such folder")
    ),
    Case(
        "threshold of no number",
        masks(1),
        (*SEGMENT[:-1], *args("masks --task-option threshold=half")),
        USAGE,
        (r"'half'",),
    ),
    Case(
        "annotations of several objects as labels",
        taking(
            lambda bench: bench.write(
                "truths.json",
                json.dumps(
                    {
                        "images": [{"id": 1, "file_name": "0/3.png", "height": SIZE, "width": SIZE}],
                        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
                        "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 1, "category_id": 2}],
                    }
                ),
            )
        ),
        (*COMPARE, "--labels", "truths.json"),
        BAD,
        (r"conflicting labels for '0/3\.png'", r"one label a sample", r"--task detect"),
    ),
    Case(
        "metric of a wrong form", taking(), (*COMPARE, "--metric", "mine"), USAGE, (r"wrong form", r"module:function")
    ),
    Case(
        "metric missing",
        taking(),
        (*COMPARE, "--metric", "gone_q:f"),
        USAGE,
        (r"no Python module 'gone_q'", r"expected"),
    ),
    Case(
        "metric that returns no number a sample",
        taking(),
        (*COMPARE, "--metric", "operator:is_"),
        BAD,
        (r"metric 'operator:is_' returned something wrong for 'is_'", r"False", r"12 numbers"),
    ),
    Case(
        "metric that raises",
        taking(),
        (*COMPARE, "--metric", "json:loads"),
        BAD,
        (r"'json:loads' failed", r"TypeError"),
    ),
    Case("metric that ends", taking(), (*COMPARE, "--metric", "sys:exit"), BAD, (r"'sys:exit' failed", r"expected")),
)
