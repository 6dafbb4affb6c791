"""``quantlab report``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console, echo


@click.command(short_help="Render a saved result in another format.")
@click.argument("result", type=options.PATH)
@click.option(
    "--format",
    "name",
    default="terminal",
    show_default=True,
    metavar="NAME",
    help="terminal, markdown, csv, json, junit or summary.",
)
@click.option("-o", "--out", type=options.PATH, help="Write to this file. Default: stdout.")
@options.common
def command(result: Path, name: str, out: Path | None, console: Console) -> None:
    """Render RESULT (comparison.json, gate.json, calibration.json or saved findings); nothing is computed again."""
    from quantlab.files import write_text
    from quantlab.reports import render
    from quantlab.workflow.results import load_result

    loaded = load_result(result)
    text = render(loaded, "json" if console.as_json else name, console.style if out is None else None)
    if out is None:
        echo(text)
    else:
        write_text(out, text)
        console.say(f"wrote {out}")
