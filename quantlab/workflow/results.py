"""Loading a saved result of any kind by its schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from quantlab.calibrators.stability_result import STABILITY_SCHEMA, Stability
from quantlab.calibrators.table import TABLE_SCHEMA, CalibrationTable
from quantlab.documents import read_file, read_json
from quantlab.errors import DataError
from quantlab.findings import LINT_SCHEMA, LintReport
from quantlab.gate import VERDICT_SCHEMA, Verdict
from quantlab.harness.bench import BENCH_SCHEMA, Bench
from quantlab.harness.comparison import COMPARISON_SCHEMA, Comparison
from quantlab.harness.profile import PROFILE_SCHEMA, Profiles
from quantlab.records import from_plain
from quantlab.recovery.result import RECOVERY_SCHEMA, Recovery

Result = CalibrationTable | Bench | Comparison | Verdict | LintReport | Stability | Profiles | Recovery


def load_findings(path: Path) -> LintReport:
    """Read what ``quantlab inspect --lint --json`` printed.

    Raises:
        DataError: If the file is missing, damaged, or of another schema.
    """
    document = read_json(path, LINT_SCHEMA, DataError, "findings")
    document.pop("schema")
    return from_plain(LintReport, document, str(path), DataError)


LOADERS: Mapping[str, Callable[[Path], Result]] = MappingProxyType(
    {
        TABLE_SCHEMA: CalibrationTable.load,
        COMPARISON_SCHEMA: Comparison.load,
        BENCH_SCHEMA: Bench.load,
        VERDICT_SCHEMA: Verdict.load,
        LINT_SCHEMA: load_findings,
        STABILITY_SCHEMA: Stability.load,
        PROFILE_SCHEMA: Profiles.load,
        RECOVERY_SCHEMA: Recovery.load,
    }
)


def schema_of(path: Path) -> str:
    """The ``schema`` of a JSON document.

    Raises:
        DataError: If the file is missing, not JSON, or says no schema.
    """
    try:
        document = json.loads(read_file(path, DataError, "result"))
    except (UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise DataError(f"result {path} is not valid JSON", got=str(cause)) from cause
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, str):
        raise DataError(f"result {path} says no schema", expected="one of " + ", ".join(LOADERS))
    return schema


def load_result(path: Path) -> Result:
    """Read a calibration table, a comparison, a bench, a verdict or findings.

    Raises:
        QuantlabError: If the file is missing, damaged, or of an unknown schema.
    """
    schema = schema_of(path)
    if schema not in LOADERS:
        kind = schema.rpartition("/")[0]
        raise DataError(
            f"result {path} has an unknown schema",
            got=repr(schema),
            expected="one of " + ", ".join(LOADERS),
            hint="make it again with this version of quantlab"
            if kind in [known.rpartition("/")[0] for known in LOADERS]
            else None,
        )
    return LOADERS[schema](path)
