"""Models that are quantized already and are kept as they are."""

from __future__ import annotations

import pytest
from qdq_checks import quantized
from qdq_graphs import residual

from quantlab.errors import ModelError
from quantlab.graph.model import Model
from quantlab.graph.qdq import ExistingPolicy, quantize_model
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT


@pytest.mark.parametrize("target", [TENSORRT, ONNXRUNTIME], ids=lambda target: target.name)
def test_nothing_is_added_whatever_the_target_takes(target: object) -> None:
    """UINT8 activations, which the rules of TensorRT would refuse, and a layer that was left out."""
    made, _ = quantized(residual(), ONNXRUNTIME, ("second",))
    kept = quantize_model(Model.of(made.proto), None, target, existing=ExistingPolicy.KEEP)  # type: ignore[arg-type]
    assert kept.proto == made.proto
    assert kept.kept == ("stem", "first", "last")
    assert (kept.layers, kept.tensors, kept.degradations) == ((), {}, ())


def test_a_floating_point_model_is_refused() -> None:
    with pytest.raises(ModelError, match="holds no QuantizeLinear or DequantizeLinear nodes to keep"):
        quantize_model(Model.of(residual()), None, TENSORRT, existing=ExistingPolicy.KEEP)
