"""The canonical JSON documents; named so because ``json`` is a module of Python."""

from __future__ import annotations

from types import MappingProxyType

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
from quantlab.reports import calibration, findings, layer_drift, profile, recovery, stability, truth
from quantlab.reports.format import Format, Style


def render_comparison(comparison: Comparison, style: Style) -> str:
    """The bytes of ``comparison.json``."""
    return comparison.to_json()


def render_bench(bench: Bench, style: Style) -> str:
    """The bytes of ``bench.json``."""
    return bench.to_json()


def render_verdict(verdict: Verdict, style: Style) -> str:
    """The bytes of ``gate.json``."""
    return verdict.to_json()


FORMAT = Format(
    "json",
    ".json",
    MappingProxyType(
        {
            Comparison: render_comparison,
            Bench: render_bench,
            Verdict: render_verdict,
            CalibrationTable: calibration.render_json,
            LintReport: findings.render_json,
            Stability: stability.render_json,
            Recovery: recovery.render_json,
            Profiles: profile.render_json,
            Truth: truth.render_json,
            LayerDrift: layer_drift.render_json,
        }
    ),
)
