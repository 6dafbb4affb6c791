"""``quantlab gate`` and ``quantlab gate plan``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console

_DEFAULT = "check"


class _DefaultGroup(click.Group):
    """A group whose first word need not be a subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultGroup, short_help="Comparison and policy to a verdict.")
def command() -> None:
    """Judge a comparison by a policy; the exit code is the verdict.

    \b
    Examples:
      quantlab gate comparison/ --policy policy.toml
      quantlab gate plan --margin 0.5pp --discordance 2%
    """  # noqa: D301


@command.command(name=_DEFAULT, short_help="Judge a comparison (may be left out).")
@click.argument("comparison", type=options.PATH, default="comparison")
@options.policy
@options.out("gate")
@options.common
def check(comparison: Path, policy: str, out: Path, console: Console) -> int:
    """Judge COMPARISON (comparison.json or its folder; default: comparison/) by a policy.

    Writes gate.json, junit.xml and summary.md. Exit code 0 pass, 1 fail, 3 inconclusive, 5 error.
    """
    import datetime as dt

    from quantlab.gate import evaluate
    from quantlab.harness.comparison import Comparison
    from quantlab.reports import render
    from quantlab.workflow.gate import comparison_path, find_policy, write_verdict

    rules = find_policy(policy, Path())
    verdict = evaluate(Comparison.load(comparison_path(comparison)), rules, dt.date.today())
    paths = write_verdict(out, verdict)
    text = render(verdict, "terminal", console.style)
    console.result(text + "\n" + "\n".join(f"wrote {path}" for path in paths), verdict.to_json())
    return int(verdict.exit_code)


@command.command(short_help="Images needed for a margin.")
@click.option("--margin", required=True, metavar="PP", help="Largest loss that is acceptable, for example 0.5pp.")
@click.option(
    "--discordance", default="2%", show_default=True, metavar="PCT", help="Expected share of changed answers."
)
@click.option("--true-loss", default="0pp", show_default=True, metavar="PP", help="Loss assumed to be real.")
@click.option("--alpha", type=click.FloatRange(0, 0.5, min_open=True, max_open=True), default=0.05, show_default=True)
@options.common
def plan(margin: str, discordance: str, true_loss: str, alpha: float, console: Console) -> None:
    """How many labelled images a paired non-inferiority test needs at 80 and 90 % power."""
    from quantlab.documents import dump_json
    from quantlab.gate import POWERS, plan_non_inferiority
    from quantlab.records import to_plain

    result = plan_non_inferiority(
        _number(margin, "--margin", "pp"),
        _number(discordance, "--discordance", "%"),
        true_loss_pp=_number(true_loss, "--true-loss", "pp"),
        alpha=alpha,
    )
    lines = [
        f"{images:,} images for {100 * power:.0f} % power" for images, power in zip(result.images, POWERS, strict=True)
    ]
    head = (
        f"to show a loss below {result.margin_pp:g} pp with one-sided alpha {alpha:g}, at {result.discordance_pct:g} % "
        f"changed answers and a true loss of {result.true_loss_pp:g} pp:"
    )
    console.result("\n".join([head, *lines]), dump_json({"schema": "quantlab.plan/1", **to_plain(result)}))


def _number(text: str, flag: str, unit: str) -> float:
    match = re.fullmatch(rf"\s*(-?\d+(?:\.\d+)?)\s*(?:{re.escape(unit)})?\s*", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number of {unit}", param_hint=flag)
    return float(match[1])
