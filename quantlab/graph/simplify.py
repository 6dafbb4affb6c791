"""The simplifier: onnxslim on a model's skeleton, kept quiet. See docs/adr/003-simplifier.md."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

from onnx import ModelProto

from quantlab.errors import ModelError
from quantlab.graph.session import first_line
from quantlab.graph.skeleton import make_skeleton, restore_weights

_SKIPPED = (
    "FusionConvAdd", "FusionConvTransposeAdd", "FusionConvBN", "FusionConvTransposeBN", "FusionConvMul",
    "FusionConvTransposeMul", "FusionGemm", "FusionGemmMul", "FusionGemmAdd",
)  # fmt: skip
"""Fusions that change weights: done here, in float64 and whatever the weights' size, or not at all."""


def simplify(proto: ModelProto) -> ModelProto:
    """Simplify a copy of a model: shape arithmetic, common subexpressions, redundant reshapes and transposes.

    Large weights take no part (they look like inputs to the simplifier), so their size does not matter and they come
    out unchanged, external ones included.

    Raises:
        ModelError: If the simplifier fails.
    """
    skeleton = make_skeleton(proto)
    noise = io.StringIO()
    logger = logging.getLogger("onnxslim")
    level, handlers = logger.level, list(logger.handlers)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            warnings.simplefilter("ignore")
            import onnxslim

            result = onnxslim.slim(skeleton, skip_fusion_patterns=list(_SKIPPED))
    except BaseException as cause:
        if isinstance(cause, KeyboardInterrupt | MemoryError):
            raise
        raise ModelError("the simplifier failed", got=f"{type(cause).__name__}: {first_line(cause)}") from cause
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers  # it installs one that writes to stderr
    if not isinstance(result, ModelProto):
        raise ModelError("the simplifier gave no model", got=type(result).__name__)
    return restore_weights(result, proto)
