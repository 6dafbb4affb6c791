"""The linter of calibration caches: each rule fires where it should, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibrator_data import entry, table, tensor_range
from hypothesis import given
from hypothesis import strategies as st

from quantlab.calibrators import CalibrationCache
from quantlab.calibrators.cache_lint import CACHE_RULES, CacheContext, NetworkTensors, lint_cache
from quantlab.calibrators.cache_provenance import CacheProvenance
from quantlab.calibrators.cache_text import MAX_CACHE_BYTES
from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.findings import Severity

GOOD = CalibrationCache(101600, "EntropyCalibration2", {"x": 0.01, "c": 0.03, "r": 0.03, "y": 0.2})
NETWORK = NetworkTensors(
    names=("x", "c", "r", "i", "y"),
    constants=frozenset({"w"}),
    copies={"x": "x", "c": "c", "r": "r", "i": "r", "y": "y"},
    limits={"r": 6.0},
    within={"r": "c"},
)


def data(**scales: float) -> bytes:
    return CalibrationCache(101600, "EntropyCalibration2", {**GOOD.scales, **scales}).render().encode()


def provenance(cache: CalibrationCache) -> CacheProvenance:
    return CacheProvenance.of("m.calib", cache, table(entry("x", tensor_range())))


def rules(content: bytes, context: CacheContext | None = None) -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for finding in lint_cache(content, context or CacheContext(provenance=provenance(CalibrationCache(1, "A", {})))):
        found.setdefault(finding.rule, []).append(finding.where)
    found.pop("other-provenance", None)
    return found


def test_a_good_cache_has_no_findings() -> None:
    whole = CalibrationCache(101600, "EntropyCalibration2", {**GOOD.scales, "i": 0.03, "w": 0.5})
    context = CacheContext("10.16.0", Algorithm.ENTROPY_2, NETWORK, "a" * 64, provenance(whole))
    assert lint_cache(whole.render().encode(), context) == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"TRT-101600-EntropyCalibration2\r\nx: 3c010a14\r\n", {"windows-line-ends": [()]}),
        (b"\xef\xbb\xbfTRT-101600-EntropyCalibration2\nx: 3c010a14\n", {"byte-order-mark": [()]}),
        (b"TRT-101600-EntropyCalibration2\nx: 3c010a14", {"no-final-newline": [()]}),
        (b"x: 3c010a14\n", {"no-header": [()]}),
        (b"TRT-101600-EntropyCalibration2\nx: 3c010a14\ny\n\n", {"malformed-line": [(), ()]}),
        (b"TRT-101600-EntropyCalibration2\nx: 3c010a14\nx: 3c010a14\n", {"repeated-tensor": [("x",)]}),
        (b"TRT-101600-EntropyCalibration2\nx: 7fc00000\ny: 3c010a14\n", {"unusable-scale": [("x",)]}),
        (b"TRT-101600-EntropyCalibration2\nx: 0\ny: 3c010a14\n", {"zero-scale": [("x",)]}),
        (b"TRT-101600-EntropyCalibration2\nx\0: 3c010a14\n", {"impossible-name": [()]}),
        (b"TRT-101600-EntropyCalibration2\n", {"no-tensors": [()]}),
        (b"TRT-99999-EntropyCalibration2\nx: 3c010a14\n", {"unknown-version": [()]}),
        (b"TRT-101600-Entropy\nx: 3c010a14\n", {"unknown-algorithm": [()]}),
        (b"TRT-101600-EntropyCalibration2\n\xff: 3c010a14\n", {"not-utf8": [()]}),
        (b" " * (MAX_CACHE_BYTES + 1), {"too-large": [()]}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_rules_of_the_text(content: bytes, expected: dict[str, list[tuple[str, ...]]]) -> None:
    assert rules(content) == expected


@pytest.mark.parametrize(
    ("tensorrt", "rule", "severity"),
    [
        ("10.16.0", None, None),
        ("10.3.0", "other-version", Severity.INFO),
        ("8.6.1", "other-major-version", Severity.ERROR),
        ("11.1.0", "no-calibrators", Severity.ERROR),
    ],
)
def test_version(tensorrt: str, rule: str | None, severity: Severity | None) -> None:
    found = lint_cache(data(), CacheContext(tensorrt, provenance=provenance(GOOD)))
    assert [(finding.rule, finding.severity) for finding in found] == ([] if rule is None else [(rule, severity)])


def test_algorithm() -> None:
    found = lint_cache(data(), CacheContext(calibrator=Algorithm.MINMAX, provenance=provenance(GOOD)))
    assert [finding.rule for finding in found] == ["other-algorithm"]
    assert "EntropyCalibration2, IInt8MinMaxCalibrator reads MinMaxCalibration" in found[0].message


def test_coverage() -> None:
    context = CacheContext(network=NETWORK, provenance=provenance(GOOD))
    assert rules(data(), context) == {"missing-tensor": [("i",)]}
    (missing,) = (finding for finding in lint_cache(data(), context) if finding.rule == "missing-tensor")
    assert missing.message == "no scale; 'r' holds the same values"
    extra = data(i=0.03, **{"other": 0.1, "(Unnamed Layer* 82) [Shuffle]_output": 0.1})
    assert rules(extra, context) == {
        "unknown-tensor": [("other",)], "tensorrt-name": [("(Unnamed Layer* 82) [Shuffle]_output",)],
    }  # fmt: skip


def test_cache_of_another_model() -> None:
    other = CalibrationCache(101600, "EntropyCalibration2", {"a": 0.1, "b": 0.1}).render().encode()
    assert rules(other, CacheContext(network=NETWORK, provenance=provenance(GOOD))) == {"other-model": [()]}


class TestScales:
    CONTEXT = CacheContext(network=NETWORK, provenance=provenance(GOOD))

    @pytest.mark.parametrize(
        ("r", "c", "expected"),
        [
            (6 / 127, 0.03, {}),
            (11.9 / 127, 0.03, {}),  # TensorRT's histogram of a Relu6 may end at 8, or nearly 12
            (12.1 / 127, 0.03, {"beyond-limit": [("r",)]}),
            (0.05, 0.013, {}),
            (0.05, 0.012, {"beyond-input": [("r", "c")]}),
            (0.05, 0.0, {"zero-scale": [("c",)]}),
        ],
    )
    def test_bounds(self, r: float, c: float, expected: dict[str, list[tuple[str, ...]]]) -> None:
        assert rules(data(i=0.03, r=r, c=c), self.CONTEXT) == expected

    def test_a_cache_that_holds_amax_is_beyond_limits(self) -> None:
        amax = {name: 127 * scale for name, scale in {**GOOD.scales, "i": 0.03}.items()}
        assert set(rules(data(**amax), self.CONTEXT)) == {"beyond-limit"}

    @pytest.mark.parametrize(
        ("scale", "absurd"), [(0.03 * 9e4, False), (0.03 * 2e5, True), (0.03 / 2e5, True), (1e-44, True)]
    )
    def test_absurd(self, scale: float, absurd: bool) -> None:
        content = CalibrationCache(101600, "EntropyCalibration2", dict.fromkeys("abcdef", 0.03) | {"x": scale})
        assert rules(content.render().encode()) == ({"absurd-scale": [("x",)]} if absurd else {})


class TestProvenance:
    def test_missing(self) -> None:
        (found,) = lint_cache(data())
        assert (found.rule, found.severity) == ("no-provenance", Severity.INFO)

    def test_damaged(self) -> None:
        (found,) = lint_cache(data(), CacheContext(provenance_error="not JSON"))
        assert (found.rule, found.message) == ("damaged-provenance", "not JSON")

    def test_of_another_cache(self) -> None:
        (found,) = lint_cache(data(x=0.011), CacheContext(provenance=provenance(GOOD)))
        assert (found.rule, found.severity) == ("other-provenance", Severity.ERROR)

    def test_of_another_model(self) -> None:
        made = provenance(GOOD)
        assert lint_cache(data(), CacheContext(provenance=made, model_sha256=made.model_sha256)) == ()
        (found,) = lint_cache(data(), CacheContext(provenance=made, model_sha256="f" * 64))
        assert found.rule == "provenance-of-other-model"


def test_every_rule_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [rule for rule in CACHE_RULES if f'"{rule}"' not in text] == []
    assert len(set(CACHE_RULES)) == len(CACHE_RULES)


@given(st.binary() | st.binary().map(lambda tail: GOOD.render().encode() + tail), st.booleans())
def test_any_bytes_can_be_linted(content: bytes, with_network: bool) -> None:
    context = CacheContext("10.16.0", Algorithm.MINMAX, NETWORK if with_network else None)
    for finding in lint_cache(content, context):
        assert finding.rule in CACHE_RULES
        assert finding.why and finding.fix
