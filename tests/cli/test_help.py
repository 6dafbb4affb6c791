"""The help pages: complete, true, and the same flags everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import quantlab.cli
from quantlab.cli.main import PLANNED, VERBS, State, group
from quantlab.errors import ExitCode
from quantlab.workflow.build import BACKENDS

_SHARED = ("across", "console", "main", "merging", "options")
_WITHOUT_OUTPUT_FLAGS = ("completion",)


def _invoke(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments), obj=State())


def _commands() -> dict[str, click.Command]:
    """Every command by the words that call it, subcommands included."""
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for verb in VERBS:
        command = group.get_command(context, verb)
        assert command is not None
        found[verb] = command
        if isinstance(command, click.Group):
            found |= {f"{verb} {name}": inner for name, inner in command.commands.items()}
    return found


COMMANDS = _commands()


def test_one_file_per_verb() -> None:
    folder = Path(quantlab.cli.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--", *_SHARED}
    assert files == set(VERBS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_group_help(flag: str) -> None:
    result = _invoke(flag)
    assert result.exit_code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in result.output
    for verb in PLANNED:
        assert f"\n  {verb} " not in result.output
    for code in ExitCode:
        assert f" {int(code)} " in result.output


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_command_help(words: str, flag: str) -> None:
    result = _invoke(*words.split(), flag)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: {group.name} {words}")


@pytest.mark.parametrize("words", COMMANDS)
def test_examples_keep_their_lines(words: str) -> None:
    output = _invoke(*words.split(), "--help").output
    assert "\\b" not in output  # click's mark must be the character, not its escape
    examples = [line for line in output.splitlines() if "quantlab " in line and not line.startswith("Usage")]
    assert all(line.count("quantlab ") == 1 for line in examples if line.startswith("    quantlab "))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_flag_is_explained(words: str) -> None:
    for parameter in COMMANDS[words].params:
        if isinstance(parameter, click.Option):
            assert parameter.help or words == "gate plan", f"{words} {parameter.opts[0]}"
            assert all(flag.startswith("-") and "_" not in flag for flag in parameter.opts)


@pytest.mark.parametrize("words", COMMANDS)
def test_common_flags(words: str) -> None:
    command = COMMANDS[words]
    if isinstance(command, click.Group) or words in _WITHOUT_OUTPUT_FLAGS:
        return
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {"--json", "--quiet", "--verbose", "--debug"} <= flags


def test_a_flag_has_one_help_text() -> None:
    texts: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.opts[0] in ("--data", "--labels", "--seed", "--json"):
                texts.setdefault(parameter.opts[0], set()).add(str(parameter.help))
    assert {flag: len(found) for flag, found in texts.items()} == dict.fromkeys(texts, 1)


def test_every_backend_is_named() -> None:
    (backend,) = [one for one in COMMANDS["build"].params if one.name == "backend"]
    assert isinstance(backend, click.Option)
    assert all(name in re.split(r"[ ,.]+", str(backend.help)) for name in BACKENDS)


@pytest.mark.parametrize("verb", PLANNED)
def test_planned_verbs_say_so(verb: str) -> None:
    result = _invoke(verb)
    assert result.exit_code == ExitCode.USAGE
    assert "planned" in result.output


def test_misspelt_verb() -> None:
    result = _invoke("calibrat")
    assert result.exit_code == ExitCode.USAGE
    assert "calibrat" in result.output
