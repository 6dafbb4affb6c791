"""nncf: ``nncf.quantize`` on the ONNX model, or on its conversion to OpenVINO (``backend``).

``preset``, ``fast_bias_correction`` and ``model_type`` as ``nncf.quantize`` names them, and ``range``, one of nncf's
estimators of activation ranges (its default clips to the mean of the images' extremes). With the preset ``performance``
zero-points are 0, but activations that are never negative become uint8; nncf refuses to be forced to int8.
"""

from __future__ import annotations

from typing import Any

import nncf
import numpy as np
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from peer_job import Job


def main() -> None:
    job = Job.read()
    settings: dict[str, Any] = {}
    if "preset" in job.settings:
        settings["preset"] = nncf.QuantizationPreset(job.settings["preset"])
    if "model_type" in job.settings:
        settings["model_type"] = nncf.ModelType(job.settings["model_type"])
    if "fast_bias_correction" in job.settings:
        settings["fast_bias_correction"] = job.settings["fast_bias_correction"]
    if "range" in job.settings:
        estimator = getattr(RangeEstimatorParametersSet, job.settings["range"])
        settings["advanced_parameters"] = nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=estimator
        )
    np.random.seed(job.seed)  # noqa: NPY002 - what nncf itself draws from
    if job.settings["backend"] == "openvino":
        import openvino

        # Not `read_model`: on what that gives, nncf's bias correction does nothing and does not say so.
        converted = openvino.convert_model(job.model)
        found = nncf.quantize(converted, _images(job), subset_size=len(job.images), **settings)
        openvino.save_model(found, job.out, compress_to_fp16=False)
        return
    import onnx

    found = nncf.quantize(onnx.load(job.model), _images(job), subset_size=len(job.images), **settings)
    onnx.save(found, job.out)


def _images(job: Job) -> nncf.Dataset:
    return nncf.Dataset(
        list(range(len(job.images))), lambda index: {job.input: np.array(job.images[index : index + 1])}
    )


if __name__ == "__main__":
    main()
