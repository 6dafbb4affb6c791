"""onnxruntime.quantization: `quantize_static` with the settings of a job.

``method``, ``activation`` (int8 or uint8), ``per_channel``, and ``options`` (its ``extra_options``); none of them: its
defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from peer_job import Array, Job

TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


class Reader(CalibrationDataReader):
    """One image at a time."""

    def __init__(self, job: Job) -> None:
        self.feeds: Iterator[dict[str, Array]] = job.feeds()

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def main() -> None:
    job = Job.read()
    settings: dict[str, Any] = {}
    if "method" in job.settings:
        settings["calibrate_method"] = CalibrationMethod[job.settings["method"]]
    if "activation" in job.settings:
        settings |= {"activation_type": TYPES[job.settings["activation"]], "weight_type": QuantType.QInt8}
    if "per_channel" in job.settings:
        settings["per_channel"] = job.settings["per_channel"]
    quantize_static(job.model, job.out, Reader(job), extra_options=job.settings.get("options", {}), **settings)


if __name__ == "__main__":
    main()
