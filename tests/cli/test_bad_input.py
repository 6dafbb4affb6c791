"""A table of bad inputs: each ends with its exit code and a message that helps, and leaves nothing half-written."""

from __future__ import annotations

import fnmatch
import re
from itertools import chain

import pytest
from bad_benches import BENCHES
from bad_caches import CACHES
from bad_calibrations import CALIBRATIONS
from bad_case import Case
from bad_data import DATA
from bad_flags import FLAGS
from bad_models import MODELS
from bad_results import RESULTS
from bad_tasks import TASKS
from bad_truths import TRUTHS
from cli_bench import Bench, Cli, tree

from quantlab.cli.main import VERBS
from quantlab.errors import ExitCode

CASES = tuple(chain(MODELS, DATA, FLAGS, RESULTS, CACHES, CALIBRATIONS, BENCHES, TRUTHS, TASKS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, bench: Bench, cli: Cli) -> None:
    case.prepare(bench)
    before = tree(bench.folder)
    answer = cli(*case.arguments)
    after = tree(bench.folder)

    assert answer.code == case.code, answer
    assert "Traceback" not in answer.err
    assert "internal error" not in answer.err
    for pattern in case.says:
        assert re.search(pattern, answer.err), f"{pattern!r} is not in:\n{answer.err}"
    assert not re.search(r"object at 0x|<class '|\\n", answer.err.replace(r"a\nb", "")), answer.err
    if case.code in (ExitCode.USAGE, ExitCode.BAD_INPUT, ExitCode.UNAVAILABLE) and not case.new:
        assert answer.out == ""

    assert {name: after.get(name) for name in before} == before, "earlier files have changed"
    added = [name for name in after if name not in before]
    assert [name for name in added if not any(fnmatch.fnmatch(name, pattern) for pattern in case.new)] == []
    assert [name for name in added if name.endswith(".tmp")] == []


def test_every_verb_is_in_the_table() -> None:
    assert {case.arguments[0] for case in CASES if case.arguments[0] in VERBS} == set(VERBS)


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 60
