"""Images of coloured rectangles, their annotations, and models that really find them, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE = 64
COLOURS = ("red", "green", "blue")
PREPROCESS = f'resize = "letterbox"\nsize = [{SIDE}, {SIDE}]\nscale = 255.0\nfill = 20\n'


def paint(folder: Path, n: int, seed: int) -> Path:
    """Write ``n`` images of various sizes with up to one rectangle of each colour, and ``<folder>.json`` (COCO)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(n):
        height, width = rng.integers(60, 150, 2).tolist()
        name = f"{number:03d}.png"
        images.append({"id": 10 + number, "file_name": name, "height": height, "width": width})
        pixels = rng.integers(0, 70, (height, width, 3))
        for colour in rng.permutation(3)[: rng.integers(1, 4)].tolist():  # later ones in columns of their own
            low = colour * width // 3
            w, h = rng.integers(10, width // 3 - 1), rng.integers(10, height // 2)
            x, y = low + rng.integers(0, width // 3 - w), rng.integers(0, height - h)
            base = np.full(3, 30)
            base[colour] = 255
            pixels[y : y + h, x : x + w] = np.clip(base + rng.integers(-30, 1, (h, w, 3)), 0, 255)
            box = [int(x), int(y), int(w), int(h)]
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + number, "category_id": 3 * colour + 4, "bbox": box,
                 "area": int(w * h), "iscrowd": 0, "segmentation": [[int(v) for v in corners]]}
            )  # fmt: skip
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    categories = [{"id": 3 * number + 4, "name": name} for number, name in enumerate(COLOURS)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    folder.with_suffix(".json").write_text(json.dumps(document))
    return folder


def _array(name: str, values: object, kind: type[np.generic] = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, kind), name)


def _write(path: Path, nodes: list[onnx.NodeProto], output: onnx.ValueInfoProto, arrays: list[TensorProto]) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])]
    graph = helper.make_graph(nodes, "painted", inputs, [output], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def _one_colour(classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (classes, 3, 1, 1) and biases that are above 0 where one channel stands out; more classes are 0."""
    weights = np.full((classes, 3), -8.0, np.float32)
    weights[-3:][np.eye(3, dtype=bool)] = 8.0
    biases = np.full(classes, -3.0, np.float32)
    weights[:-3], biases[:-3] = 0.0, 0.0
    return weights[:, :, None, None], biases


def write_detector(path: Path) -> Path:
    """x -> (n, 4 + 3, 3): for each colour the box around all its pixels, in the layout of YOLOv8."""
    weights, biases = _one_colour(3)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w", "b"], ["colour"], name="colour"),
        node("Clip", ["colour", "zero", "one"], ["mask"], name="mask"),
        node("AveragePool", ["mask"], ["smooth"], name="smooth", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    for axis, name in ((2, "x"), (3, "y")):
        nodes += [
            node("ReduceMax", ["smooth"], [f"{name}_profile"], axes=[axis], keepdims=0),
            node("Sub", [f"{name}_profile", "half"], [f"{name}_above"]),
            node("Mul", [f"{name}_above", "steep"], [f"{name}_steep"]),
            node("Clip", [f"{name}_steep", "zero", "one"], [f"{name}_seen"]),
            node("Mul", [f"{name}_seen", "from_start"], [f"{name}_ends"]),
            node("Mul", [f"{name}_seen", "from_end"], [f"{name}_starts"]),
            node("ReduceMax", [f"{name}_ends"], [f"{name}2"], axes=[2], keepdims=1),
            node("ReduceMax", [f"{name}_starts"], [f"{name}_rest"], axes=[2], keepdims=1),
            node("Sub", ["side", f"{name}_rest"], [f"{name}1"]),
            node("Add", [f"{name}1", f"{name}2"], [f"{name}_sum"]),
            node("Mul", [f"{name}_sum", "half"], [f"{name}c"]),
            node("Sub", [f"{name}2", f"{name}1"], [f"{name}s"]),
        ]
    nodes += [
        node("Concat", ["xc", "yc", "xs", "ys"], ["rows"], axis=2),  # (n, 3, 4)
        node("Transpose", ["rows"], ["boxes"], perm=[0, 2, 1]),
        node("ReduceMean", ["mask"], ["filled"], axes=[2, 3], keepdims=0),
        node("Sqrt", ["filled"], ["score"]),
        node("Unsqueeze", ["score", "two"], ["column"]),
        node("Mul", ["column", "eye"], ["scores"]),
        node("Concat", ["boxes", "scores"], ["output0"], axis=1),
    ]
    arrays = [
        _array("w", weights), _array("b", biases), _array("zero", 0.0), _array("one", 1.0), _array("half", 0.5),
        _array("steep", 20.0), _array("side", float(SIDE)), _array("from_start", np.arange(1, SIDE + 1)),
        _array("from_end", np.arange(SIDE, 0, -1)), _array("two", [2], np.int64), _array("eye", np.eye(3)),
    ]  # fmt: skip
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["n", 7, 3])
    return _write(path, nodes, output, arrays)


def write_segmenter(path: Path) -> Path:
    """x -> logits (n, 4, 32, 32) of background, red, green and blue, at half the resolution."""
    weights, biases = _one_colour(4)
    blur = np.zeros((3, 3, 3, 3), np.float32)
    blur[np.arange(3), np.arange(3)] = np.outer([1, 2, 1], [1, 2, 1]) / 16
    nodes = [
        helper.make_node("Conv", ["x", "blur"], ["small"], name="blur", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["small"], ["positive"], name="relu"),
        helper.make_node("Conv", ["positive", "w", "b"], ["logits"], name="colour"),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4, SIDE // 2, SIDE // 2])
    return _write(path, nodes, output, [_array("blur", blur), _array("w", weights), _array("b", biases)])


def write_meter(path: Path) -> Path:
    """x -> the mean of each channel (n, 3), by a convolution and a pool."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["same"], name="same"),
        helper.make_node("GlobalAveragePool", ["same"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["means"], name="flatten"),
    ]
    output = helper.make_tensor_value_info("means", TensorProto.FLOAT, ["n", 3])
    return _write(path, nodes, output, [_array("w", np.eye(3)[:, :, None, None])])
