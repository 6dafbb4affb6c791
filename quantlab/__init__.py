"""quantlab: in which precision may this model ship?

The names below are the public API, together with those of `quantlab.calibrators`, `quantlab.datasets` and
`quantlab.reports`; everything else may change. They are imported when first used, so ``import quantlab`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlab.calibrators.table import CalibrationTable
    from quantlab.degradation import Degradation, DegradationCode
    from quantlab.engines.variant import Variant
    from quantlab.errors import ExitCode, QuantlabError
    from quantlab.gate import Policy, Verdict, evaluate, load_policy
    from quantlab.graph.targets import TARGETS, TargetProfile
    from quantlab.harness.compare import CompareSettings
    from quantlab.harness.comparison import Comparison
    from quantlab.harness.latency import LatencySettings
    from quantlab.harness.samples import read_samples
    from quantlab.harness.tasks.registry import TaskRequest
    from quantlab.precision import Execution, Precision
    from quantlab.progress import Narrator, Silent
    from quantlab.recovery.recover import RecoverSettings, recover
    from quantlab.workflow.build import build_variants
    from quantlab.workflow.calibrate import CalibrateSettings, calibrate, write_calibration
    from quantlab.workflow.compare import compare_files, write_comparison
    from quantlab.workflow.demo import make_demo
    from quantlab.workflow.run import run_recipe
    from quantlab.workflow.sources import DataRequest, open_data, open_model

_HOMES = {
    "CalibrateSettings": "quantlab.workflow.calibrate",
    "CalibrationTable": "quantlab.calibrators.table",
    "CompareSettings": "quantlab.harness.compare",
    "Comparison": "quantlab.harness.comparison",
    "DataRequest": "quantlab.workflow.sources",
    "Degradation": "quantlab.degradation",
    "DegradationCode": "quantlab.degradation",
    "Execution": "quantlab.precision",
    "ExitCode": "quantlab.errors",
    "LatencySettings": "quantlab.harness.latency",
    "Narrator": "quantlab.progress",
    "Policy": "quantlab.gate",
    "Precision": "quantlab.precision",
    "QuantlabError": "quantlab.errors",
    "RecoverSettings": "quantlab.recovery.recover",
    "Silent": "quantlab.progress",
    "TARGETS": "quantlab.graph.targets",
    "TargetProfile": "quantlab.graph.targets",
    "TaskRequest": "quantlab.harness.tasks.registry",
    "Variant": "quantlab.engines.variant",
    "Verdict": "quantlab.gate",
    "build_variants": "quantlab.workflow.build",
    "calibrate": "quantlab.workflow.calibrate",
    "compare_files": "quantlab.workflow.compare",
    "evaluate": "quantlab.gate",
    "load_policy": "quantlab.gate",
    "make_demo": "quantlab.workflow.demo",
    "open_data": "quantlab.workflow.sources",
    "open_model": "quantlab.workflow.sources",
    "read_samples": "quantlab.harness.samples",
    "recover": "quantlab.recovery.recover",
    "run_recipe": "quantlab.workflow.run",
    "write_calibration": "quantlab.workflow.calibrate",
    "write_comparison": "quantlab.workflow.compare",
}

__all__ = [
    "TARGETS",
    "CalibrateSettings",
    "CalibrationTable",
    "CompareSettings",
    "Comparison",
    "DataRequest",
    "Degradation",
    "DegradationCode",
    "Execution",
    "ExitCode",
    "LatencySettings",
    "Narrator",
    "Policy",
    "Precision",
    "QuantlabError",
    "RecoverSettings",
    "Silent",
    "TargetProfile",
    "TaskRequest",
    "Variant",
    "Verdict",
    "build_variants",
    "calibrate",
    "compare_files",
    "evaluate",
    "load_policy",
    "make_demo",
    "open_data",
    "open_model",
    "read_samples",
    "recover",
    "run_recipe",
    "write_calibration",
    "write_comparison",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'quantlab' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
