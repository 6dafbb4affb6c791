"""amd-quark: ``ModelQuantizer`` with a `QConfig` made from the settings of a job; none of them: its defaults.

``activation`` (int8 or uint8), ``symmetric``, ``method``, ``per_channel``, ``algorithms`` (name and arguments),
``options``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from onnxruntime.quantization import CalibrationDataReader
from peer_job import Array, Job
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import QConfig
from quark.onnx.quantization.config.algorithm import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    CLEConfig,
    GPTQConfig,
    SmoothQuantConfig,
)
from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, QuantGranularity, UInt8Spec

ALGORITHMS = {
    "adaquant": AdaQuantConfig,
    "adaround": AdaRoundConfig,
    "bias-correction": BiasCorrectionConfig,
    "cle": CLEConfig,
    "gptq": GPTQConfig,
    "smoothquant": SmoothQuantConfig,
}


class Reader(CalibrationDataReader):
    """One image at a time; Quark also asks how many there are, and begins again."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rewind()

    def __len__(self) -> int:
        return len(self.job.images)

    def rewind(self) -> None:
        self.feeds: Iterator[dict[str, Array]] = self.job.feeds()

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def config_of(settings: dict[str, Any]) -> QConfig:
    """The configuration that the settings describe; without settings Quark's defaults."""
    if not settings:
        return QConfig(QLayerConfig(activation=Int8Spec(), weight=Int8Spec()))
    spec = {"int8": Int8Spec, "uint8": UInt8Spec}[settings["activation"]]
    granularity = QuantGranularity.Channel if settings["per_channel"] else QuantGranularity.Tensor
    activation = spec(symmetric=settings["symmetric"], calibration_method=CalibMethod[settings["method"]])
    weight = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=granularity)
    algorithms = [ALGORITHMS[name](**arguments) for name, arguments in settings.get("algorithms", {}).items()]
    return QConfig(
        QLayerConfig(activation=activation, weight=weight), algo_config=algorithms, **settings.get("options", {})
    )


def main() -> None:
    job = Job.read()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    ModelQuantizer(config_of(job.settings)).quantize_model(str(job.model), str(job.out), Reader(job))


if __name__ == "__main__":
    main()
