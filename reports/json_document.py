"""The canonical JSON documents; named so because ``json`` is a module of Python."""

from __future__ import annotations

from types import MappingProxyType

from quantlab.calibrators.stability_result import Stability
from quantlab.calibrators.table import CalibrationTable
from quantlab.findings import LintReport
from quantlab.gate.verdict import Verdict
from quantlab.harness.comparison import Comparison
from quantlab.reports import calibration, findings, stability
from quantlab.reports.format import Format, Style


def render_comparison(comparison: Comparison, style: Style) -> str:
    """The bytes of ``comparison.json``."""
    return comparison.to_json()


def render_verdict(verdict: Verdict, style: Style) -> str:
    """The bytes of ``gate.json``."""
    return verdict.to_json()


FORMAT = Format(
    "json",
    ".json",
    MappingProxyType(
        {
            Comparison: render_comparison,
            Verdict: render_verdict,
            CalibrationTable: calibration.render_json,
            LintReport: findings.render_json,
            Stability: stability.render_json,
        }
    ),
)
