"""Coverage-guided fuzzing of everything that reads ranges from files of others.

Run it with atheris (Linux, CPython 3.11 to 3.13), one target at a time:

    pip install atheris && python benchmarks/fuzz_cache.py cache -max_total_time=300

Arguments after the target are libFuzzer's. A target fails if a reader raises anything but an error of quantlab, or if
what it accepts does not survive being written and read again. Results are in benchmarks/README.md.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["quantlab"]):
    from quantlab.calibrators import CalibrationCache, CalibrationTable, load_histograms
    from quantlab.calibrators.cache_lint import CacheContext, lint_cache
    from quantlab.calibrators.cache_provenance import read_cache_provenance
    from quantlab.calibrators.ort_table import OrtForm, OrtTable
    from quantlab.calibrators.tensorrt_cache import Algorithm
    from quantlab.errors import QuantlabError

CONTEXT = CacheContext("10.16.0", Algorithm.MINMAX)
FOLDER = Path(tempfile.mkdtemp(prefix="quantlab-fuzz-"))


def cache(data: bytes) -> None:
    """The strict reader, the writer and the linter of TensorRT caches."""
    findings = lint_cache(data, CONTEXT)
    try:
        found = CalibrationCache.from_bytes(data, "f")
    except QuantlabError:
        assert findings
        return
    assert CalibrationCache.from_bytes(found.render().encode(), "f") == found


def ort(data: bytes) -> None:
    """ONNX Runtime's tables in their three forms."""
    found = OrtTable.parse(data, "f")
    for form in OrtForm:
        rendered = OrtTable(form, found.amax).render()
        if form is not OrtForm.TEXT or not rendered.lstrip().startswith(b"{"):
            assert dict(OrtTable.parse(rendered, "f").amax) == dict(found.amax), form


def table(data: bytes) -> None:
    """``calibration.json``."""
    path = FOLDER / "calibration.json"
    path.write_bytes(data)
    found = CalibrationTable.load(path)
    path.write_text(found.to_json(), encoding="utf-8")
    assert CalibrationTable.load(path) == found


def provenance(data: bytes) -> None:
    """``<cache>.json``."""
    (FOLDER / "m.calib.json").write_bytes(data)
    read_cache_provenance(FOLDER / "m.calib")


def histograms(data: bytes) -> None:
    """``histograms.npz``."""
    path = FOLDER / "histograms.npz"
    path.write_bytes(data)
    for histogram in load_histograms(path).values():
        histogram.distribution()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "cache": cache, "ort": ort, "table": table, "provenance": provenance, "histograms": histograms,
}  # fmt: skip


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_cache.py {'|'.join(TARGETS)} [libFuzzer options]")
    target = TARGETS[sys.argv[1]]

    def once(data: bytes) -> None:
        with contextlib.suppress(QuantlabError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
