"""nvidia-modelopt: ``modelopt.onnx.quantization.quantize`` with the settings of a job as its arguments."""

from __future__ import annotations

import numpy as np
from modelopt.onnx.quantization import quantize
from peer_job import Job


def main() -> None:
    job = Job.read()
    quantize(
        str(job.single), calibration_data={job.input: np.array(job.images)}, calibration_eps=["cpu"],
        output_path=str(job.out), **job.settings,
    )  # fmt: skip


if __name__ == "__main__":
    main()
