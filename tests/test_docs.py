"""The documentation against the code: commands, tables, names and examples are true."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from project_tree import FOLDERS, PYPROJECT, ROOT

from quantlab.cli.main import PLANNED, VERBS
from quantlab.datasets import PRESETS, preprocess_from_table
from quantlab.datasets.geometry import Interpolation
from quantlab.degradation import DegradationCode
from quantlab.errors import ExitCode
from quantlab.gate.loading import parse_policy
from quantlab.gate.metrics import METRICS
from quantlab.gate.presets import PRESETS as POLICIES
from quantlab.recovery.recover import STEP_NAMES

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = ["bash run-demo.sh", "bash run-tests.sh"]


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def _rows(text: str, head: str) -> list[list[str]]:
    """Cells of the Markdown table that begins with the column ``head``."""
    lines = text.split(f"| {head} |", 1)[1].splitlines()[2:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def _toml_blocks(text: str) -> list[str]:
    return re.findall(r"```toml\n(.*?)```", text, re.DOTALL)


def test_readme_has_the_two_commands_and_ci_runs_them() -> None:
    assert [line for line in README.splitlines() if re.fullmatch(r"bash run-[a-z]*\.sh", line)] == COMMANDS
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert r"/^bash run-[a-z]*\.sh$/p" in ci
    assert '"$clone/README.md"' in ci
    assert " ".join(COMMANDS) in ci


@pytest.mark.parametrize("script", ["run-demo.sh", "run-tests.sh", ".ci/run"])
def test_scripts_are_careful(script: str) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(ROOT / script, os.X_OK)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_readme_verbs() -> None:
    assert [row[0].strip("`") for row in _rows(README, "verb")] == list(VERBS)
    for verb in PLANNED:
        assert f"`{verb}`" in README.split("## What is not there yet")[1]


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_exit_codes(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "README.md":
        assert [int(row[0]) for row in _rows(text, "exit code")] == [int(code) for code in ExitCode]
    else:
        sentence = " ".join(text.split("Exit codes, stable:")[1].split("\n\n")[0].split())
        assert [int(number) for number in re.findall(r"\b\d+\b", sentence)] == [int(code) for code in ExitCode]


def test_design_names_verbs_and_layers() -> None:
    text = _page("design.md")
    for verb in (*VERBS, *PLANNED):
        assert f"`{verb}`" in text
    layers = [
        name.removeprefix("quantlab.")
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
        for layer in contract["layers"]
        for name in layer.replace(":", " ").split()
    ]
    arrows = re.search(r"^`degradation, errors.*?`cli`$", text, re.DOTALL | re.MULTILINE)
    assert arrows is not None
    named = re.findall(r"\w+", arrows[0])
    assert set(layers) <= set(named)
    assert [name for name in named if name in layers[:9]] == layers[:9][::-1]


def test_bundled_models() -> None:
    training = json.loads((ROOT / "datasets/samples/training.json").read_text(encoding="utf-8"))
    for row in _rows(README, "model"):
        facts = training.pop(row[0].split("`")[1])
        assert row[1:] == [f"{facts['parameters']:,}", f"{facts['test_top1_percent']:.2f} %"]
    assert training == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles]


def test_numbered_decisions_are_unique() -> None:
    numbers = [path.name[:3] for path in (ROOT / "docs/adr").glob("*.md")]
    assert len(set(numbers)) == len(numbers)
    for path in (ROOT / "docs/adr").glob("*.md"):
        assert path.read_text(encoding="utf-8").startswith(f"# {path.name[:3]}: ")


def test_every_dependency_has_a_reason() -> None:
    names = [re.split(r"[<>=!~;\[ ]", text)[0] for text in PYPROJECT["project"]["dependencies"]]
    assert sorted(row[0] for row in _rows(_page("adr/004-dependencies.md"), "package")) == sorted(names)


def test_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{PYPROJECT['project']['version']}]" in text
    assert "\n### Added\n" in text


def test_every_degradation_is_explained() -> None:
    text = _page("degradations.md")
    titles = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert sorted(titles) == sorted(DegradationCode)
    for part in text.split("\n### ")[1:]:
        assert "**Do:**" in part, part.splitlines()[0]


@pytest.mark.parametrize("code", DegradationCode)
def test_every_degradation_is_reported_somewhere(code: DegradationCode) -> None:
    made = re.compile(rf"Degradation(\.of)?\(\s*DegradationCode\.{code.name}\b")
    files = [path for folder in FOLDERS.values() for path in folder.rglob("*.py")]
    assert any(made.search(path.read_text(encoding="utf-8")) for path in files)


def test_policy_examples() -> None:
    examples = _toml_blocks(_page("policy.md"))
    assert len(examples) == 4
    for text in examples:
        assert parse_policy(text, "docs/policy.md").checks


def test_policy_tables() -> None:
    text = _page("policy.md")
    assert sorted(row[0].strip("`") for row in _rows(text, "name")) == sorted(POLICIES)
    named = {}
    for row in _rows(text, "metric"):
        for metric in re.findall(r"`(\w+)`", row[0]):
            named[metric] = (row[1], re.findall(r"`([\w-]+)`", row[2]))
    assert named == {
        metric.value: (rules.unit, [claim.value for claim in rules.thresholds]) for metric, rules in METRICS.items()
    }


def test_preprocessing_examples() -> None:
    text = _page("data-and-preprocessing.md")
    examples = _toml_blocks(text)
    assert len(examples) == 2
    for example in examples:
        preprocess_from_table(tomllib.loads(example)["preprocess"], "docs")
    assert all(str(filter_) in text for filter_ in Interpolation)


def test_presets_table() -> None:
    rows = _rows(_page("data-and-preprocessing.md"), "preset")
    assert sorted(name for row in rows for name in re.findall(r"`([\w-]+)`", row[0])) == sorted(PRESETS)


def test_recovery_names_the_steps_in_their_order() -> None:
    assert [row[0].strip("`") for row in _rows(_page("recovery.md"), "step")] == list(STEP_NAMES)


def test_allow_example_is_a_code() -> None:
    (example,) = _toml_blocks(_page("degradations.md"))
    for code in tomllib.loads(example)["gate"]["allow"]:
        DegradationCode(code)
