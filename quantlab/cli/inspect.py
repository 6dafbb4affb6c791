"""``quantlab inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="What is in a file, and what is wrong with it.")
@click.argument("file", type=options.PATH)
@click.option("--lint", is_flag=True, help="Say what is wrong with a model or TensorRT cache, why, and the fix.")
@options.target
@click.option("--model", type=options.PATH, help="With --lint: model that the TensorRT cache is for.")
@click.option("--tensorrt", metavar="VERSION", help="With --lint: TensorRT version that is to read the cache.")
@click.option("--diff", type=options.PATH, help="Compare the ranges in FILE with those in this file.")
@options.common
def command(
    file: Path, lint: bool, target: str, model: Path | None, tensorrt: str | None, diff: Path | None, console: Console
) -> int | None:
    """Say what FILE is and what is in it: a model, engine, calibration table, TensorRT cache, result or recovered/.

    With --lint, check a model by the rules of --target, or a TensorRT cache. Exit code 5 if something is an error, 0 if
    there are warnings only.

    With --diff, say how the ranges in FILE differ from those in another one: caches, tables, Q/DQ models.
    """
    if diff is not None:
        _diff(file, diff, lint or model is not None or tensorrt is not None, console)
        return None
    if lint:
        return _lint(file, target, model, tensorrt, console)
    from quantlab.documents import dump_json
    from quantlab.errors import ConfigError
    from quantlab.workflow.inspect import inspect_file

    if model is not None or tensorrt is not None:
        raise ConfigError("--model and --tensorrt say what to lint against", hint="add --lint")
    found = inspect_file(file, console.style)
    console.result(found.text, dump_json(found.document))
    return None


def _diff(left: Path, right: Path, linting: bool, console: Console) -> None:
    from quantlab.errors import ConfigError
    from quantlab.workflow.range_diff import diff_document, diff_files, diff_text

    if linting:
        raise ConfigError("--lint and --diff are two questions", hint="ask one at a time")
    found = diff_files(left, right)
    console.result(diff_text(found), diff_document(found))


def _lint(file: Path, target: str, model: Path | None, tensorrt: str | None, console: Console) -> int:
    from quantlab.errors import ExitCode
    from quantlab.findings import Severity
    from quantlab.reports import render
    from quantlab.workflow.build import target_for
    from quantlab.workflow.lint import LintSettings, lint_file

    report = lint_file(file, LintSettings(target_for(target), model, tensorrt))
    console.result(render(report, "terminal", console.style), render(report, "json"))
    return int(ExitCode.BAD_INPUT if report.worst is Severity.ERROR else ExitCode.OK)
