"""Policies: presets, inheritance, and what is refused."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from quantlab.degradation import DegradationCode
from quantlab.errors import ConfigError
from quantlab.gate.loading import load_policy, parse_policy
from quantlab.gate.metrics import METRICS, Claim, Metric
from quantlab.gate.policy import Level, Margin, OnInconclusive
from quantlab.gate.presets import PRESETS

CHECK = '[[check]]\nid = "a"\nmetric = "sqnr_db"\nlimit = 20\n'
FULL = """
schema = 1
[gate]
alpha = 0.025
on-inconclusive = "warn"
allow = ["lossy-decode"]
[[check]]
id = "accuracy.top1"
metric = "top1"
candidate = "int8"
reference = "fp32"
claim = "non-inferior"
margin = { relative = 0.01 }
min_samples = 2000
level = "warn"
[[waiver]]
check = "accuracy.top1"
candidate = "onnxruntime-*"
reason = "GH-118"
expires = 2027-01-31
"""


def test_every_field_is_read() -> None:
    policy = parse_policy(FULL, "gate.toml")
    assert policy.name == "gate.toml"
    assert policy.gate.alpha == 0.025
    assert policy.gate.on_inconclusive is OnInconclusive.WARN
    assert policy.gate.allow == (DegradationCode.LOSSY_DECODE,)
    (check,) = policy.checks
    assert (check.candidate, check.reference, check.min_samples, check.level) == ("int8", "fp32", 2000, Level.WARN)
    assert check.margin == Margin(relative=0.01)
    assert check.effective_claim is Claim.NON_INFERIOR
    (waiver,) = policy.waivers
    assert (waiver.reason, waiver.expires) == ("GH-118", dt.date(2027, 1, 31))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert any(check.level is Level.ERROR for check in policy.checks)
    assert not set(policy.gate.allow) & {
        DegradationCode.OVERLAP, DegradationCode.RANDOM_DATA, DegradationCode.ASSUMED_PREPROCESS,
        DegradationCode.UNREADABLE_SAMPLES, DegradationCode.PRECISION_NOT_PROVED,
    }  # fmt: skip


def test_the_hash_is_of_the_meaning() -> None:
    first = parse_policy("schema = 1\n" + CHECK, "a")
    assert parse_policy("schema = 1  # a comment\n\n" + CHECK.replace("20", "20.0"), "b").sha256 == first.sha256
    assert parse_policy("schema = 1\n" + CHECK.replace("20", "21"), "a").sha256 != first.sha256


def test_extends_overrides_settings_and_checks_and_adds() -> None:
    base = load_policy("quantlab:default")
    text = (
        'schema = 1\nextends = "quantlab:default"\n[gate]\nallow = []\n'
        '[[check]]\nid = "accuracy.top1"\nmetric = "top1"\nmargin = { absolute_pp = 2 }\n' + CHECK
    )
    policy = parse_policy(text)
    assert policy.gate.allow == ()
    assert policy.gate.alpha == base.gate.alpha
    assert [check.id for check in policy.checks] == [*(check.id for check in base.checks), "a"]
    assert policy.checks[0].margin == Margin(absolute_pp=2.0)


def test_extends_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.toml").write_text('schema = 1\nextends = "quantlab:strict"\n' + CHECK)
    (tmp_path / "sub" / "gate.toml").write_text('schema = 1\nextends = "../base.toml"\n[gate]\nalpha = 0.01\n')
    policy = load_policy(tmp_path / "sub" / "gate.toml")
    assert policy.name == "gate.toml"
    assert policy.gate.alpha == 0.01
    assert policy.checks[-1].id == "a"


def test_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text('schema = 1\nextends = "gate.toml"\n' + CHECK)
    with pytest.raises(ConfigError, match="extends itself"):
        load_policy(tmp_path / "gate.toml")


def check(lines: str) -> str:
    return f'schema = 1\n[[check]]\nid = "x"\n{lines}\n'


def waived(lines: str) -> str:
    return f"schema = 1\n{CHECK}[[waiver]]\n{lines}\n"


REFUSED = {
    "key": ('schema = 1\n[gate]\nalhpa = 0.05\n' + CHECK, "alhpa", "did you mean 'alpha'"),
    "check key": (check('metric = "finite"\nlevle = "warn"'), "levle", "did you mean 'level'"),
    "metric": (check('metric = "top_1"'), "metric has a wrong value", "did you mean 'top1'"),
    "degradation": ('schema = 1\n[gate]\nallow = ["random_data"]\n' + CHECK, "allow", "did you mean 'random-data'"),
    "no schema": (CHECK, "lacks the key 'schema'", ""),
    "schema": ("schema = 2\nnew = 1\n" + CHECK, "another schema", "schema = 1"),
    "empty": ("schema = 1\n", "has no check", "quantlab:default"),
    "toml": ("schema = = 1\n", "not valid TOML", ""),
    "preset": ('schema = 1\nextends = "quantlab:strickt"\n', "no preset policy", "did you mean 'quantlab:strict'"),
    "alpha": ("schema = 1\n[gate]\nalpha = 0.5\n" + CHECK, "alpha", "below 0.5"),
    "twice": ("schema = 1\n" + CHECK + CHECK, "two checks with the id 'a'", ""),
    "reserved id": ("schema = 1\n" + CHECK.replace('"a"', '"guard.a"'), "id of check", "not beginning with guard."),
    "spaces in id": ("schema = 1\n" + CHECK.replace('"a"', '"a b"'), "id of check", ""),
    "no limit": (check('metric = "sqnr_db"'), "wrong thing", "limit for the claim at-least"),
    "no margin": (check('metric = "top1"'), "wrong thing", "margin for the claim non-inferior"),
    "both": (check('metric = "top1"\nlimit = 70\nmargin = { absolute_pp = 1 }'), "wrong thing", "margin and limit"),
    "limit of a yes or no": (check('metric = "finite"\nlimit = 1'), "wrong thing", "nothing"),
    "claim": (check('metric = "sqnr_db"\nclaim = "at-most"\nlimit = 3'), "does not support", "at-least"),
    "top5 non-inferior": (
        check('metric = "top5"\nclaim = "non-inferior"\nmargin = { absolute_pp = 1 }'), "does not support", "at-least"
    ),
    "empty margin": (check('metric = "top1"\nmargin = {}'), "unclear", "none"),
    "two margins": (check('metric = "top1"\nmargin = { absolute_pp = 1, relative = 0.1 }'), "unclear", "_pp and"),
    "absolute margin of a share": (check('metric = "top1"\nmargin = { absolute = 1 }'), "unclear", "absolute_pp or"),
    "no figure": (check('metric = "score"\nmargin = { absolute = 1 }'), "names no figure", "figure = 'map'"),
    "figure of another": (check('metric = "finite"\nfigure = "map"'), "names a figure", "metric = 'score'"),
    "slices of another": (check('metric = "finite"\nslices = "class"'), "has slices", "metric = 'score'"),
    "infinite margin": (check('metric = "score"\nfigure = "a"\nmargin = { absolute = inf }'), "out of range", "above"),
    "zero margin": (check('metric = "top1"\nmargin = { absolute_pp = 0 }'), "out of range", "above 0"),
    "relative margin in percent": (check('metric = "top1"\nmargin = { relative = 99 }'), "out of range", "fraction"),
    "fraction for percent": (check('metric = "agreement"\nlimit = 0.99'), "out of range", "percent: 99"),
    "all of a population": (check('metric = "agreement"\nlimit = 100'), "can never be shown", "on-this-set"),
    "cosine": (check('metric = "cosine"\nlimit = 99'), "out of range", "from -1 to 1"),
    "negative": (check('metric = "kl_nats"\nlimit = -1'), "out of range", "at least 0"),
    "nan": (check('metric = "sqnr_db"\nlimit = nan'), "not a number", ""),
    "min_samples": (check('metric = "finite"\nmin_samples = 0'), "min_samples", "at least 1"),
    "noise of another": (check('metric = "finite"\naa_noise_max = 0.1'), "aa_noise_max", "latency_ratio"),
    "noise": (check('metric = "latency_ratio"\nlimit = 1\naa_noise_max = 0'), "aa_noise_max", "above 0"),
    "boundary of another": (check('metric = "finite"\nboundary = "device"'), "boundary", "latency_ratio"),
    "unknown boundary": (
        check('metric = "latency_ratio"\nlimit = 1\nboundary = "devise"'), "boundary", "did you mean 'device'"
    ),
    "boundary that is not judged": (
        check('metric = "latency_ratio"\nlimit = 1\nboundary = "enqueue"'), "not judged", "one of host, device"
    ),
    "output of another": (check('metric = "size_ratio"\nlimit = 1\noutput = "a"'), "names an output", ""),
    "waiver": (waived('check = "b"\nreason = "r"\nexpires = 2027-01-01'), "does not exist", "one of a"),
    "reason": (waived('check = "a"\nreason = " "\nexpires = 2027-01-01'), "has no reason", ""),
    "expires": (waived('check = "a"\nreason = "r"\nexpires = 2027-01-01T00:00:00'), "expires", "a date"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, what, more = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert what in str(caught.value)
    assert more in str(caught.value)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text("schema = 1\n" + CHECK)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_policy(tmp_path / "gaet.toml")
    assert "gate.toml" in str(caught.value)


def test_waivers_may_name_guards_and_degradations() -> None:
    text = "schema = 1\n" + CHECK
    for name in ("guard.finite", "degradation.lossy-decode"):
        text += f'[[waiver]]\ncheck = "{name}"\nreason = "r"\nexpires = 2027-01-01\n'
    assert len(parse_policy(text).waivers) == 2


def test_every_metric_has_rules() -> None:
    assert set(METRICS) == set(Metric)
