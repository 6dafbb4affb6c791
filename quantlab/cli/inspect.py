"""``quantlab inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="What is in a file.")
@click.argument("file", type=options.PATH)
@options.common
def command(file: Path, console: Console) -> None:
    """Say what FILE is and what is in it: a model, engine, calibration table, TensorRT cache or result."""
    from quantlab.documents import dump_json
    from quantlab.workflow.inspect import inspect_file

    found = inspect_file(file, console.style)
    console.result(found.text, dump_json(found.document))
