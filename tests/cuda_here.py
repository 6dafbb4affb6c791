"""Whether ONNX Runtime's CUDA provider works here, for tests that need it."""

from __future__ import annotations

import functools

from quantlab.errors import QuantlabError
from quantlab.workflow.gpu_trials import run_on_cuda


@functools.cache
def cuda_is_missing() -> str:
    """Why not; empty if it works. Runs one product."""
    try:
        run_on_cuda(16, use_tf32=False)
    except QuantlabError as error:
        return f"needs ONNX Runtime's CUDA provider: {error.what}"
    return ""
