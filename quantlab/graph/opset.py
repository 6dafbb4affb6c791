"""Raising the version of a model's operator set."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from quantlab.errors import ModelError
from quantlab.graph.checks import opset_of
from quantlab.graph.skeleton import make_skeleton, restore_weights


def raise_opset(proto: ModelProto, opset: int, ir_version: int) -> ModelProto:
    """The model at an operator set and IR version at least as new as these; itself if it is already.

    Raises:
        ModelError: If onnx cannot convert it.
    """
    if opset_of(proto) >= opset and proto.ir_version >= ir_version:
        return proto
    if opset_of(proto) >= opset:
        result = ModelProto()
        result.CopyFrom(proto)
    else:
        try:
            converted = onnx.version_converter.convert_version(make_skeleton(proto), opset)
        except Exception as cause:  # the converter's C++ exceptions share no base class
            raise ModelError(
                f"the model cannot be converted to opset {opset}",
                got=f"opset {opset_of(proto)}: {str(cause).splitlines()[0]}",
                hint=f"export it with opset {opset} or later",
            ) from cause
        result = restore_weights(converted, proto)
    result.ir_version = max(result.ir_version, ir_version)
    return result
