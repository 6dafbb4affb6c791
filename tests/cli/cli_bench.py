"""A folder to run the command line in: tiny models, images and finished artifacts, and a way to call it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from quantlab.cli.main import main

CLASSES = 4
SIZE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call of the command line gave."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """Stdout as the one JSON document that it must be."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Cli = Callable[..., Answer]
"""Calls the command line in this process: ``cli("inspect", "net.onnx")``."""


def call(arguments: Sequence[str], read: Callable[[], tuple[str, str]]) -> Answer:
    """Run ``main`` in this process; ``read`` gives what was printed since the last call."""
    read()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    out, err = read()
    assert isinstance(code, int)
    return Answer(code, out, err)


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: its content's hash by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def weight(name: str, *shape: int, scale: float = 0.4) -> TensorProto:
    """Normal weights; the same name and shape give the same numbers."""
    seed = int.from_bytes(hashlib.sha256(f"{name}{shape}".encode()).digest()[:4], "big")
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def graph_model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    opset: int = 17,
) -> ModelProto:
    """A model around a list of nodes."""
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def value(name: str, *shape: int | str | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A tensor's name, shape and type."""
    return helper.make_tensor_value_info(name, kind, shape)


def tiny_cnn(batch: int | str = "n", channels: int = 3, size: int | str = SIZE, classes: int = CLASSES) -> ModelProto:
    """Conv, Relu, average pool, Gemm: x [batch, channels, size, size] -> y [batch, classes]."""
    return graph_model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
            helper.make_node("GlobalAveragePool", ["r1"], ["g1"], name="pool"),
            helper.make_node("Flatten", ["g1"], ["f1"], name="flatten"),
            helper.make_node("Gemm", ["f1", "w2", "b2"], ["y"], name="head"),
        ],
        [value("x", batch, channels, size, size)],
        [value("y", batch, classes)],
        [
            weight("w1", 8, channels, 3, 3),
            weight("b1", 8),
            weight("w2", 8, classes),
            weight("b2", classes),
        ],
    )


def two_inputs() -> ModelProto:
    """Two inputs of four numbers each, multiplied by weights and added."""
    return graph_model(
        [
            helper.make_node("MatMul", ["a", "wa"], ["ma"], name="ma"),
            helper.make_node("MatMul", ["b", "wb"], ["mb"], name="mb"),
            helper.make_node("Add", ["ma", "mb"], ["y"], name="sum"),
        ],
        [value("a", "n", 4), value("b", "n", 4)],
        [value("y", "n", 3)],
        [weight("wa", 4, 3), weight("wb", 4, 3)],
    )


def features() -> ModelProto:
    """One input of rank two: x [n, 4] -> y [n, 3]."""
    return graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        [value("x", "n", 4)],
        [value("y", "n", 3)],
        [weight("w", 4, 3)],
    )


def pixels(label: int, index: int, size: int = SIZE, channels: int = 3) -> NDArray[np.uint8]:
    """One image, a colour a class with noise, mostly the class that `tiny_cnn` says; grey has no last axis."""
    rng = np.random.default_rng((label, index, size, channels))
    base = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])[(label + 1) % 4][:channels]
    image: NDArray[np.uint8] = np.clip(base + rng.integers(-40, 41, (size, size, channels)), 0, 255).astype(np.uint8)
    return image if channels == 3 else image[:, :, 0]


class Bench:
    """The folder of one test, and the shop of finished artifacts that it may take copies from."""

    def __init__(self, folder: Path, shop: Path) -> None:
        self.folder = folder
        self.shop = shop

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def take(self, *names: str) -> None:
        """Copy finished artifacts: net.onnx, images, eval, calibration, engines, comparison, gate."""
        for name in names:
            source = self.shop / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name)
            else:
                shutil.copyfile(source, self.folder / name)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file, with its folders."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self, proto: ModelProto, name: str = "net.onnx") -> Path:
        """Write a model."""
        return self.write(name, proto.SerializeToString())

    def images(self, name: str = "images", per_class: int = 2, size: int = SIZE, channels: int = 3) -> Path:
        """Write PNG files in folders named 0 to 3."""
        for label in range(CLASSES):
            for index in range(per_class):
                path = self.folder / name / str(label) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels(label, index, size, channels)).save(path)
        return self.folder / name

    def arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Write an .npz file."""
        path = self.folder / name
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path

    def edit_json(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON file in place."""
        path = self.folder / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    def recipe(self, text: str = "", name: str = "quantlab.toml", **replace: str) -> Path:
        """Write a recipe that works with net.onnx, images and eval; ``replace`` swaps the text of whole sections."""
        sections = {
            "model": 'file = "net.onnx"',
            "calibrate": 'data = "images"',
            "build": 'precisions = ["fp32", "int8"]',
            "compare": 'data = "eval"\nlatency-seconds = 0',
            "gate": 'policy = "policy.toml"',
            "run": "threads = 1",
            "preprocess": "scale = 255",
        } | replace
        body = "".join(f"[{section}]\n{lines}\n\n" for section, lines in sections.items() if lines)
        self.write("policy.toml", PASSING)
        return self.write(name, f"schema = 1\n{text}\n{body}")


PASSING = """\
schema = 1
[gate]
allow = ["method-fallback"]
[[check]]
id = "sqnr"
metric = "sqnr_db"
candidate = "int8"
limit = 1.0
"""
"""A policy that the tiny model's INT8 variant passes."""
