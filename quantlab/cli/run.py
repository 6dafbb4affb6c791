"""``quantlab run``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="The whole chain from a recipe.")
@click.argument("recipe", type=options.PATH, default="quantlab.toml")
@click.option("-o", "--out", type=options.PATH, help="Folder for the outputs. Default: the recipe's.")
@click.option("--force", is_flag=True, help="Run every step again, whatever is cached.")
@options.common
def command(recipe: Path, out: Path | None, force: bool, console: Console) -> int:
    """Calibrate, build, compare and gate as RECIPE says (default: quantlab.toml); the exit code is the verdict.

    Steps whose inputs are unchanged, by content, are taken from the output folder. After an interruption, run it
    again: it goes on with the first unfinished step.
    """
    return run_and_show(recipe, out, force, console)


def run_and_show(recipe: Path, out: Path | None, force: bool, console: Console) -> int:
    """Run a recipe and print table and verdict; the exit code."""
    import datetime as dt

    from quantlab.documents import dump_json
    from quantlab.records import to_plain
    from quantlab.reports import render
    from quantlab.workflow.run import run_recipe

    result = run_recipe(recipe, out, console, force=force, today=dt.date.today())
    text = render(result.comparison, "terminal", console.style)
    text += "\n" + render(result.verdict, "terminal", console.style)
    text += "\n" + "\n".join(f"wrote {path}" for path in result.files)
    document = {
        "schema": "quantlab.run/1",
        "comparison": to_plain(result.comparison),
        "verdict": to_plain(result.verdict),
        "files": [str(path) for path in result.files],
    }
    console.result(text, dump_json(document))
    return int(result.verdict.exit_code)
