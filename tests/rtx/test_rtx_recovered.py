"""TensorRT-RTX builds engines of recovered models, and its sidecars say so."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_here import gpu_is_here
from qdq_checks import UNLIMITED
from rtx_builder import PACKAGE, REASON

from quantlab.calibrators.quantize import INT8_WEIGHT, quantize, weight_scales
from quantlab.engines.probe import load_probe, probe_path
from quantlab.engines.sidecar import read_sidecar
from quantlab.engines.tensorrt.builder import TensorRTBuilder
from quantlab.engines.variant import RecoveredModel, Variant
from quantlab.graph.model import Model, tensor_array
from quantlab.graph.weights import RoundedWeight
from quantlab.precision import Precision

sys.path.append(str(Path(__file__).parents[1] / "engines"))
from engine_data import calibrated, prepared_cnn

pytest.importorskip(PACKAGE, reason=REASON)
pytestmark = [
    pytest.mark.tensorrt_rtx,
    pytest.mark.skipif(gpu_is_here(), reason="about builds without a GPU; the engine suite has those with one"),
]


def rounded_up(model: Model, name: str) -> RoundedWeight:
    """Codes that are all one higher than the nearest."""
    stored = next(tensor for tensor in model.proto.graph.initializer if tensor.name == name)
    weight = np.asarray(tensor_array(model, stored), np.float32)
    scales = weight_scales(weight, 0, INT8_WEIGHT)
    codes = quantize(weight, scales.reshape(-1, 1, 1, 1), 0, INT8_WEIGHT).astype(np.int16)
    return RoundedWeight(np.minimum(codes + 1, 127).astype(np.int8), scales, 0)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_FP16])
def test_a_recovered_model_is_built(precision: Precision, tmp_path: Path) -> None:
    prepared = prepared_cnn()
    table = calibrated(prepared)
    codes = {"w2": rounded_up(prepared.model, "w2")}
    found = RecoveredModel(prepared.model, table, codes, UNLIMITED.name, table.method, ("round",), "a" * 64)
    variant = Variant(prepared, "tensorrt-rtx", precision, UNLIMITED, table, recovery=found)
    paths = [
        TensorRTBuilder("tensorrt-rtx").build(made, tmp_path)
        for made in (variant, dataclasses.replace(variant, recovery=None))
    ]
    sidecar = read_sidecar(paths[0])
    assert sidecar.name == f"tensorrt-rtx-{precision}-minmax-recovered"
    assert (sidecar.requested, sidecar.proved) == (precision, precision)
    assert sidecar.recovery is not None and sidecar.recovery.sha256 == "a" * 64
    assert sidecar.graph_sha256 == prepared.graph_sha256
    probe, plain = (load_probe(probe_path(path)) for path in paths)
    np.testing.assert_array_equal(probe.expected["truth"], plain.expected["truth"])  # the original's
    assert (probe.expected["own"] != plain.expected["own"]).any()  # what the engine's graph gives
