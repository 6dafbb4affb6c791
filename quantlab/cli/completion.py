"""``quantlab completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from quantlab.cli.console import echo


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example, for bash:
      quantlab completion bash >> ~/.bashrc
    """  # noqa: D301
    from quantlab.cli.main import group

    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(f"click has no completion for {shell}")
    echo(kind(group, {}, "quantlab", "_QUANTLAB_COMPLETE").source())
