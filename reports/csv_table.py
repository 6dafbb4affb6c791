"""CSV of every kind of result; named so because ``csv`` is a module of Python."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from quantlab.calibrators.stability_result import Stability
from quantlab.calibrators.table import CalibrationTable
from quantlab.findings import LintReport
from quantlab.gate.verdict import Verdict
from quantlab.harness.bench import Bench
from quantlab.harness.comparison import Comparison
from quantlab.harness.layer_record import LayerDrift
from quantlab.harness.profile import Profiles
from quantlab.harness.truth_record import Truth
from quantlab.recovery.result import Recovery
from quantlab.reports.bench_frame import bench_frame
from quantlab.reports.calibration import calibration_frame
from quantlab.reports.cells import plain
from quantlab.reports.findings import findings_frame
from quantlab.reports.format import Format, Style
from quantlab.reports.layer_drift import layers_frame
from quantlab.reports.profile import profile_frame
from quantlab.reports.recovery import recovery_frame
from quantlab.reports.scores import score_columns
from quantlab.reports.stability import stability_frame
from quantlab.reports.table import comparison_frame, verdict_frame
from quantlab.reports.truth import truth_frame

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = ("=", "+", "-", "@")


def inert(text: str) -> str:
    """``text`` on one line that no spreadsheet takes for a formula: a leading ``= + - @`` gets an apostrophe."""
    line = plain(text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA) else line


def render_comparison(comparison: Comparison, style: Style) -> str:
    """One line for each variant: the columns of `comparison_frame` and, behind them, `score_columns`."""
    import pandas as pd

    return _csv(pd.concat([comparison_frame(comparison), score_columns(comparison)], axis=1))


def render_bench(bench: Bench, style: Style) -> str:
    """One line for each engine and setting, the columns of `bench_frame`."""
    return _csv(bench_frame(bench))


def render_verdict(verdict: Verdict, style: Style) -> str:
    """One line for each check and candidate, the columns of `verdict_frame`."""
    return _csv(verdict_frame(verdict))


def render_table(table: CalibrationTable, style: Style) -> str:
    """One line for each tensor, scheme and method, the columns of `calibration_frame`."""
    return _csv(calibration_frame(table))


def render_findings(report: LintReport, style: Style) -> str:
    """One line for each finding, the columns of `findings_frame`."""
    return _csv(findings_frame(report))


def render_stability(stability: Stability, style: Style) -> str:
    """One line for each number of images and tensor, the columns of `stability_frame`."""
    return _csv(stability_frame(stability))


def render_recovery(recovery: Recovery, style: Style) -> str:
    """One line for each step, the columns of `recovery_frame`."""
    return _csv(recovery_frame(recovery))


def render_truth(truth: Truth, style: Style) -> str:
    """One line for each execution and output, the columns of `truth_frame`."""
    return _csv(truth_frame(truth))


def render_layers(drift: LayerDrift, style: Style) -> str:
    """One line for each tensor and layer, the columns of `layers_frame`."""
    return _csv(layers_frame(drift))


def render_profiles(profiles: Profiles, style: Style) -> str:
    """One line for each row of layers and engine, the columns of `profile_frame`."""
    return _csv(profile_frame(profiles))


def _csv(frame: pd.DataFrame) -> str:
    guarded = frame.copy()
    for name in frame.columns:
        if frame[name].dtype == "string":
            guarded[name] = frame[name].map(inert, na_action="ignore")
    return str(guarded.to_csv(index=False, lineterminator="\n"))


FORMAT = Format(
    "csv",
    ".csv",
    MappingProxyType(
        {
            Comparison: render_comparison,
            Bench: render_bench,
            Verdict: render_verdict,
            CalibrationTable: render_table,
            LintReport: render_findings,
            Stability: render_stability,
            Recovery: render_recovery,
            Profiles: render_profiles,
            Truth: render_truth,
            LayerDrift: render_layers,
        }
    ),
)
