"""The cache of steps: what makes one run again, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from workflow_data import Recorder

from quantlab.errors import ConfigError
from quantlab.workflow.steps import STATE_NAME, Steps

Action = Callable[[], Iterable[Path]]


class Work:
    """Actions that count their runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[str] = []

    def action(self, name: str, content: str = "result") -> Action:
        def act() -> Iterable[Path]:
            self.ran.append(name)
            path = self.folder / "parts" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            return [path]

        return act


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "out")


def steps(work: Work, *, force: bool = False) -> tuple[Steps, Recorder]:
    recorder = Recorder()
    return Steps(work.folder, recorder, force=force), recorder


def test_a_finished_step_is_not_run_again(work: Work) -> None:
    for _ in range(3):
        chain, recorder = steps(work)
        chain.run("a", {"x": 1, "list": ["b"], "none": None}, work.action("a"))
    assert work.ran == ["a"]
    assert recorder.cached == ["a"]


@pytest.mark.parametrize("inputs", [{"x": 2}, {}, {"x": 1, "y": None}, {"x": "1"}])
def test_other_inputs_run_it_again(work: Work, inputs: dict[str, object]) -> None:
    steps(work)[0].run("a", {"x": 1}, work.action("a"))
    steps(work)[0].run("a", inputs, work.action("a"))
    assert work.ran == ["a", "a"]
    steps(work)[0].run("a", inputs, work.action("a"))
    assert work.ran == ["a", "a"], "the newer record replaced the older one"


def test_another_version_runs_it_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(work)[0].run("a", {}, work.action("a"))
    monkeypatch.setattr("quantlab.workflow.steps.version", lambda _: "99")
    steps(work)[0].run("a", {}, work.action("a"))
    assert work.ran == ["a", "a"]


@pytest.mark.parametrize("how", ["changed", "deleted", "folder"])
def test_a_tampered_output_runs_it_again(work: Work, how: str) -> None:
    steps(work)[0].run("a", {}, work.action("a"))
    path = work.folder / "parts" / "a.txt"
    if how == "changed":
        path.write_text("something else")
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
    if how == "folder":
        with pytest.raises(IsADirectoryError):
            steps(work)[0].run("a", {}, work.action("a"))
    else:
        steps(work)[0].run("a", {}, work.action("a"))
        assert path.read_text() == "result"
    assert work.ran == ["a", "a"]


def test_steps_have_their_own_records(work: Work) -> None:
    chain, _ = steps(work)
    chain.run("a", {}, work.action("a"))
    chain.run("b", {}, work.action("b"))
    (work.folder / "parts" / "a.txt").unlink()
    chain, recorder = steps(work)
    chain.run("a", {}, work.action("a"))
    chain.run("b", {}, work.action("b"))
    assert work.ran == ["a", "b", "a"]
    assert recorder.cached == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_was_finished(work: Work, error: type[BaseException]) -> None:
    def interrupted() -> Iterable[Path]:
        work.action("b", "half")()
        raise error

    chain, _ = steps(work)
    chain.run("a", {}, work.action("a"))
    with pytest.raises(error):
        chain.run("b", {}, interrupted)
    chain, recorder = steps(work)
    chain.run("a", {}, work.action("a"))
    chain.run("b", {}, work.action("b"))
    assert recorder.cached == ["a"]
    assert work.ran == ["a", "b", "b"]
    assert (work.folder / "parts" / "b.txt").read_text() == "result"


def test_an_interrupted_rerun_is_not_taken_for_finished(work: Work) -> None:
    """The old record goes before the work begins: half of it may lie beside old files of the same content."""

    def interrupted() -> Iterable[Path]:
        raise KeyboardInterrupt

    chain, _ = steps(work)
    chain.run("a", {"x": 1}, work.action("a"))
    with pytest.raises(KeyboardInterrupt):
        chain.run("a", {"x": 2}, interrupted)
    steps(work)[0].run("a", {"x": 1}, work.action("a"))
    assert work.ran == ["a", "a"]


def test_force(work: Work) -> None:
    chain, _ = steps(work)
    chain.run("a", {}, work.action("a"))
    chain, recorder = steps(work, force=True)
    chain.run("a", {}, work.action("a"))
    assert work.ran == ["a", "a"]
    assert recorder.cached == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": "other/1", "steps": {}}', '{"schema": "quantlab.state/1", "steps": 3}']
)
def test_a_damaged_state_is_refused(work: Work, content: str) -> None:
    work.folder.mkdir()
    (work.folder / STATE_NAME).write_text(content)
    with pytest.raises(ConfigError, match=r"state\.json"):
        steps(work)
    steps(work, force=True)


def test_the_state_names_files_relative_to_its_folder(work: Work) -> None:
    steps(work)[0].run("a", {}, work.action("a"))
    document = json.loads((work.folder / STATE_NAME).read_text())
    assert list(document["steps"]["a"]["files"]) == ["parts/a.txt"]
    moved = work.folder.rename(work.folder.with_name("moved"))
    work.folder = moved
    steps(work)[0].run("a", {}, work.action("a"))
    assert work.ran == ["a"]
