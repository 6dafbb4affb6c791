"""The release gate: a comparison and a policy make a verdict. Computes, and renders nothing."""

from quantlab.gate.evaluate import evaluate
from quantlab.gate.loading import load_policy, parse_policy
from quantlab.gate.metrics import Claim, Metric
from quantlab.gate.plan import POWERS, Plan, images_for_margin, plan_non_inferiority
from quantlab.gate.policy import Check, Level, Margin, Policy, Waiver
from quantlab.gate.presets import PRESETS
from quantlab.gate.verdict import VERDICT_SCHEMA, CheckResult, Outcome, Verdict
from quantlab.statistics.tango import loss_upper_bound

__all__ = [
    "POWERS",
    "PRESETS",
    "VERDICT_SCHEMA",
    "Check",
    "CheckResult",
    "Claim",
    "Level",
    "Margin",
    "Metric",
    "Outcome",
    "Plan",
    "Policy",
    "Verdict",
    "Waiver",
    "evaluate",
    "images_for_margin",
    "load_policy",
    "loss_upper_bound",
    "parse_policy",
    "plan_non_inferiority",
]
