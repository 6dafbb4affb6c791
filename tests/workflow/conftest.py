"""One small run of the whole chain, shared by the tests of workflows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from workflow_data import Project, Recorder, make_project

from quantlab.workflow.run import RunResult


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, RunResult]:
    """A project that ran once; read only."""
    project = make_project(tmp_path_factory.mktemp("finished"))
    return project, project.run()


@pytest.fixture
def project(finished: tuple[Project, RunResult], tmp_path: Path) -> Project:
    """A copy of the finished project, to change and run again."""
    shutil.copytree(finished[0].folder, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
