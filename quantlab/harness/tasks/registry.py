"""The tasks by name, and which one fits a model whose task was not named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from quantlab.datasets import Batch, Dataset
from quantlab.documents import near_match
from quantlab.errors import ConfigError
from quantlab.harness.tasks.protocol import Arrays, Task
from quantlab.harness.tasks.rows import classification_output

_FACTORIES: Mapping[str, str] = MappingProxyType(
    {
        "classify": "quantlab.harness.tasks.classify",
        "outputs": "quantlab.harness.tasks.outputs",
        "detect": "quantlab.harness.tasks.detect",
        "segment": "quantlab.harness.tasks.segment",
        "regress": "quantlab.harness.tasks.regress",
        "custom": "quantlab.harness.tasks.custom",
    }
)
"""Module of each task; its function ``make`` makes the task."""

TASK_NAMES = tuple(_FACTORIES)
"""Names on the command line; ``custom`` is what ``--metric`` means."""

OWN_TRUTHS = frozenset({"detect", "segment", "regress"})
"""Tasks whose truths are no class numbers: they read what ``--labels`` names themselves."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What was asked for.

    Attributes:
        name: Of the task; None to choose by the outputs.
        metric: ``package.module:function`` of a user's own metric.
        truths: Where the truths are, for tasks that read them themselves.
        options: Settings of the task by name, as written.
    """

    name: str | None = None
    metric: str | None = None
    truths: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What a task is made from.

    Attributes:
        dataset: The samples.
        batch: The first of them.
        outputs: What the reference gives on these.
    """

    dataset: Dataset
    batch: Batch
    outputs: Arrays


def task_name(request: TaskRequest) -> str | None:
    """The task that a request names, if it names one.

    Raises:
        ConfigError: If there is no such task, or it and a metric exclude each other.
    """
    name = request.name
    if name is not None and name not in _FACTORIES:
        near = near_match(name, TASK_NAMES)
        raise ConfigError(
            f"there is no task {name!r}",
            expected="one of " + ", ".join(TASK_NAMES),
            hint=f"did you mean {near!r}?" if near else None,
        )
    if request.metric is not None:
        if name not in (None, "custom"):
            raise ConfigError(
                "--metric is a task of its own", got=f"--task {name} and --metric", hint="leave --task out"
            )
        return "custom"
    if name == "custom":
        raise ConfigError("the task 'custom' needs a metric", expected="--metric package.module:function")
    return name


def task_for(request: TaskRequest, beginning: Beginning) -> Task:
    """The task that was asked for, else ``classify`` if an output looks like class scores, else ``outputs``.

    Raises:
        ConfigError: If there is no such task, or a setting of it is wrong.
        DataError: If its truths cannot be read, or do not fit.
        BackendUnavailable: If it needs a package that is not installed.
    """
    name = task_name(request)
    if name is None:
        name = "classify" if classification_output(beginning.outputs) is not None else "outputs"
    make: Callable[[TaskRequest, Beginning], Task] = importlib.import_module(_FACTORIES[name]).make
    return make(request, beginning)


def refuse_options(request: TaskRequest, task: str) -> None:
    """Refuse settings for a task that has none.

    Raises:
        ConfigError: Naming the first.
    """
    for option in request.options:
        raise ConfigError(f"the task {task} has no setting {option!r}", expected="no --task-option")
