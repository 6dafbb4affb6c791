"""What TensorRT-RTX 1.6.1.120 gave on an NVIDIA H100 80GB HBM3 (driver 580.159.04), 2026-11-21.

`h100_outputs.npz` holds the outputs of engines of the bundled models for the inputs of their default probes, all 26
calls of 10 values, by ``<model>/<engine>/outputs``. Engines are named by the precision that was asked for; the TF32
flag was cleared in all of them. In ``fp8-but-attention`` the products of activations stayed float32, and the INT8
engine has its first layer in float32. Ranges came from 512 images of the calibration set; the tables are not kept, so
that the emulations of the quantized engines' own graphs are stored beside their outputs, ``own`` and ``own-tf32``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FILE = Path(__file__).with_suffix(".npz")


def stored(model: str, engine: str, what: str = "outputs") -> NDArray[np.float32]:
    """Values [calls, values]; ``what`` is ``outputs``, ``own`` or ``own-tf32``."""
    with np.load(_FILE) as file:
        return np.asarray(file[f"{model}/{engine}/{what}"])
