"""The entry point: finds the verb without importing the others, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import click

from quantlab.cli.console import echo
from quantlab.errors import ExitCode, OutputError, QuantlabError

VERBS = {
    "calibrate": "Images and an FP32 model to calibrated ranges, a TensorRT cache and a Q/DQ model.",
    "build": "Model, and calibration table, to FP32, TF32, FP16, BF16 and INT8 variants.",
    "compare": "Variants and data to a table of accuracy drift and latency.",
    "bench": "Latency alone, with every figure that trtexec reports.",
    "gate": "Comparison and policy to a verdict and an exit code; `gate plan` counts the images needed.",
    "run": "The whole chain from a quantlab.toml; steps are cached and resumed.",
    "report": "Render a saved result again, in another format.",
    "convert-cache": "TensorRT caches, tables and Q/DQ models into each other.",
    "inspect": "What is in a model, engine, calibration table, cache or result file.",
    "doctor": "What works on this machine.",
    "demo": "A working folder with bundled models, images, recipe and policy.",
    "completion": "Print the completion script of a shell.",
}
PLANNED = ("sensitivity", "search", "export", "history")

EPILOG = """\b
Examples:
  quantlab demo --run fashion       try everything on bundled data
  quantlab calibrate --data imgs/   calibrate the model in this folder
\b
Exit codes:
  0 ok, gate passed        4 backend or environment missing
  1 gate failed            5 bad data or model
  2 usage, configuration   70 internal error
  3 inconclusive           130 interrupted
"""


@dataclass(slots=True)
class State:
    """What the running verb told the entry point."""

    debug: bool = False
    json: bool = False


class LazyGroup(click.Group):
    """Imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"quantlab.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Explain planned and misspelt verbs."""
        if args and args[0] in PLANNED:
            raise click.UsageError(f"quantlab {args[0]} is planned; this version does not have it yet", ctx)
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else "Verbs: " + ", ".join(VERBS) + "."
            raise click.UsageError(f"No such command '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="quantlab", message="quantlab %(version)s")
def group() -> None:
    """In which precision may this model ship? Images and an ONNX model go in, evidence and a verdict come out."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    state = State(debug="--debug" in args, json="--json" in args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: file names need not be text of this terminal
    with _terminated_as_interrupted():
        code = _run(args, state)
    sys.exit(int(code))


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that a cancelled CI job leaves no temporary files."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(args: list[str], state: State) -> int:
    try:
        result = group.main(args, prog_name="quantlab", standalone_mode=False, obj=state)
    except click.ClickException as error:
        if state.json:
            _print_error("UsageError", error.format_message(), ExitCode.USAGE)
        error.show()
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(state)
    except QuantlabError as error:
        return _interrupted(state) if _from_interrupt(error) else _fail(error, state)
    except MemoryError as error:
        hint = "use fewer threads, a smaller --batch-size or smaller --shapes, or a machine with more memory"
        return _fail(QuantlabError("there is not enough memory", got=str(error) or None, hint=hint), state)
    except Exception as error:
        if _from_interrupt(error):
            return _interrupted(state)
        if state.json:
            _print_error(type(error).__name__, str(error), ExitCode.INTERNAL)
        traceback.print_exc()
        echo("internal error: this is a fault of quantlab, not yours; please report the lines above", err=True)
        return ExitCode.INTERNAL
    return int(result) if isinstance(result, int) else ExitCode.OK


def _from_interrupt(error: BaseException) -> bool:
    """Whether an error came of an interruption.

    An interruption that hits a lock of the standard library in the middle ends there in a RuntimeError of its own.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _interrupted(state: State) -> ExitCode:
    message = "interrupted: finished steps and whole files are kept, nothing is half-written"
    if state.json:
        _print_error("KeyboardInterrupt", message, ExitCode.INTERRUPTED)
    echo(f"\n{message}", err=True)
    return ExitCode.INTERRUPTED


def _fail(error: QuantlabError, state: State) -> ExitCode:
    if state.json:
        _print_error(type(error).__name__, str(error), error.exit_code)
    if state.debug:
        traceback.print_exc()
    echo(f"error: {error}", err=True)
    return error.exit_code


def _print_error(kind: str, message: str, code: ExitCode) -> None:
    document = {"schema": "quantlab.error/1", "error": kind, "message": message, "exit_code": int(code)}
    with contextlib.suppress(OutputError):  # the exit code and stderr say it too
        echo(json.dumps(document, ensure_ascii=False))
