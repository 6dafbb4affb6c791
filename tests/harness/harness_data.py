"""Engines that are functions, and data in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import InputStatistics, Manifest, ManifestEntry, Sample
from quantlab.degradation import Degradation
from quantlab.engines.sidecar import Sidecar
from quantlab.precision import Execution, Precision

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


def sidecar(name: str = "onnxruntime-fp32", **values: object) -> Sidecar:
    fields: dict[str, object] = {
        "file": f"{name}.onnx", "sha256": "e" * 64, "size_bytes": 1000, "backend": "onnxruntime",
        "requested": Precision.FP32, "proved": Precision.FP32, "proof": "read from the graph",
        "execution": Execution.NATIVE, "target": None, "method": None, "excluded": (), "model": "m.onnx",
        "model_sha256": "a" * 64, "graph_sha256": "b" * 64, "table_sha256": None, "calibration_samples": (),
        "preprocess_sha256": None, "shapes": {}, "fixed_batch": None, "environment": {}, "degradations": (),
    }  # fmt: skip
    return Sidecar(name, **(fields | values))  # type: ignore[arg-type]


class FunctionEngine:
    """An engine that computes with a Python function of the input ``x``."""

    def __init__(
        self,
        name: str,
        function: Callable[[Array], Array],
        outputs: tuple[str, ...] = ("scores",),
        **values: object,
    ) -> None:
        self.sidecar = sidecar(name, **values)
        self.function = function
        self.outputs = outputs
        self.calls: list[int] = []

    def run(self, inputs: Arrays) -> dict[str, Array]:
        self.calls.append(len(inputs["x"]))
        return dict.fromkeys(self.outputs, self.function(inputs["x"]))


class MemoryData:
    """A data set of given samples."""

    name = "memory"
    class_names = None

    def __init__(self, rows: Array, labels: Sequence[int | None], degradations: tuple[Degradation, ...] = ()) -> None:
        self.samples = [
            Sample(f"s{i}", {"x": row}, label, f"{i:064x}")
            for i, (row, label) in enumerate(zip(rows, labels, strict=True))
        ]
        self.degradations = degradations

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def manifest(self) -> Manifest:
        return Manifest(tuple(ManifestEntry(s.id, s.sha256, s.label) for s in self.samples))

    def statistics(self, n: int = 64) -> tuple[InputStatistics, ...]:
        return ()

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "memory"}
