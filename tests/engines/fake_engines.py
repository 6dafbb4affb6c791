"""Engines of the fake runtime: small models, and files with sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fake_tensorrt import FakeModel, FakeTensor

from quantlab.engines.record import EngineRecord, Profile
from quantlab.engines.sidecar import Sidecar, write_sidecar
from quantlab.files import sha256_bytes
from quantlab.precision import Execution, Precision


def scale_model(**profiles: Any) -> FakeModel:
    """``y = 2 x + side`` and its total, with x [n, 3, w] and side [n, 1, 1]; two profiles."""
    small = {"x": ((1, 3, 2), (2, 3, 4), (4, 3, 8)), "side": ((1, 1, 1), (2, 1, 1), (4, 1, 1))}
    large = {"x": ((4, 3, 2), (16, 3, 4), (32, 3, 4)), "side": ((4, 1, 1), (16, 1, 1), (32, 1, 1))}
    return FakeModel(
        inputs={"x": FakeTensor((-1, 3, -1)), "side": FakeTensor((-1, 1, 1))},
        outputs={"y": FakeTensor((-1, 3, -1)), "total": FakeTensor((-1,))},
        profiles=[small, large],
        shapes=lambda shapes, _: {"y": shapes["x"], "total": shapes["x"][:1]},
        compute=lambda feed: {
            "y": feed["x"] * 2 + feed["side"],
            "total": feed["x"].sum(axis=(1, 2)).astype(np.float32),
        },
    )


def nonzero_model() -> FakeModel:
    """The positive values of x [n]: as many as the data have."""
    return FakeModel(
        inputs={"x": FakeTensor((-1,))},
        outputs={"found": FakeTensor((-1,))},
        profiles=[{"x": ((1,), (4,), (64,))}],
        shapes=lambda shapes, _: {"found": (-1,)},
        compute=lambda feed: {"found": feed["x"][feed["x"] > 0]},
    )


def fixed_model(batch: int) -> FakeModel:
    shape = (batch, 2)
    return FakeModel(
        inputs={"x": FakeTensor(shape)},
        outputs={"y": FakeTensor(shape)},
        profiles=[{"x": (shape, shape, shape)}],
        shapes=lambda shapes, _: {"y": shape},
        compute=lambda feed: {"y": feed["x"] + 1},
    )


def feed(n: int = 2, width: int = 4, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((n, 3, width)).astype(np.float32),
        "side": rng.standard_normal((n, 1, 1)).astype(np.float32),
    }


def expect(inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = inputs["x"] * 2 + inputs["side"]
    return result


def write_engine(
    folder: Path,
    model: str,
    *,
    backend: str = "tensorrt",
    version: str | None = None,
    fixed_batch: int | None = None,
    options: Mapping[str, str] | None = None,
    compiled: bool = True,
    **record: Any,
) -> Path:
    """An engine file that holds a fake model's name, with a sidecar."""
    path = folder / f"{backend}-fp32.engine"
    data = model.encode("latin-1")
    path.write_bytes(data)
    shape = Profile((1,), (1,), (1,))
    made = EngineRecord(
        flavour=backend,
        version=version or ("1.6.1.120" if backend == "tensorrt-rtx" else "10.16.1.11"),
        gpu=record.get("gpu", "Fake GPU"),
        compute_capability=record.get("compute_capability", "9.0"),
        driver=record.get("driver"),
        cuda=record.get("cuda", "13.0"),
        options=options or {},
        profiles=({"x": shape},),
        onnx_sha256="0" * 64,
    )
    sidecar = Sidecar(
        name=f"{backend}-fp32",
        file=path.name,
        sha256=sha256_bytes(data),
        size_bytes=len(data),
        backend=backend,
        requested=Precision.FP32,
        proved=None,
        proof="none",
        execution=Execution.NATIVE,
        target=None,
        method=None,
        excluded=(),
        model="m.onnx",
        model_sha256="0" * 64,
        graph_sha256="0" * 64,
        table_sha256=None,
        calibration_samples=(),
        preprocess_sha256=None,
        shapes={},
        fixed_batch=fixed_batch,
        environment={},
        degradations=(),
        engine=made if compiled else None,
    )
    write_sidecar(path, sidecar)
    return path
