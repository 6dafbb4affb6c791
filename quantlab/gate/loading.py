"""Reading of policies: files and presets, inheritance, and the rules that the types alone cannot express."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.degradation import DegradationCode
from quantlab.documents import near_match, read_toml
from quantlab.errors import ConfigError
from quantlab.gate.guards import GUARD_IDS, RESERVED_PREFIXES
from quantlab.gate.metrics import METRICS, Claim, Metric, Threshold
from quantlab.gate.policy import POLICY_SCHEMA, Check, GateSection, Margin, Policy, Waiver
from quantlab.gate.presets import PRESETS
from quantlab.harness.measurement import Boundary
from quantlab.records import from_plain

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_EXTENDS = 8
_SMALLEST_ALPHA = 1e-12  # below, 1 - alpha loses its digits
_OUTPUT_METRICS = {
    Metric.SQNR_DB, Metric.COSINE, Metric.KL_NATS, Metric.MAX_ABS_ERROR, Metric.FINITE, Metric.NOT_CONSTANT
}  # fmt: skip
_BOUNDARIES = (Boundary.HOST, Boundary.DEVICE)
_PERCENT_METRICS = {Metric.TOP1, Metric.TOP5, Metric.AGREEMENT}


@dataclass(frozen=True, slots=True)
class _Document:
    """A policy file as written."""

    schema: int
    extends: str | None = None
    gate: Mapping[str, object] = dataclasses.field(default_factory=dict)
    check: tuple[Check, ...] = ()
    waiver: tuple[Waiver, ...] = ()


def load_policy(source: str | Path) -> Policy:
    """Read a policy file or take a preset.

    Args:
        source: Path of a TOML file, or the name of a preset such as ``quantlab:default``.

    Raises:
        ConfigError: If it is missing, not TOML, or breaks a rule; the message names the key and the nearest known one.
    """
    name = str(source)
    documents = _chain(name, Path())
    return _resolve(name if name in PRESETS else Path(name).name, documents)


def parse_policy(text: str, name: str = "policy", folder: Path | None = None) -> Policy:
    """Make a policy from TOML text.

    Args:
        text: The TOML.
        name: Name for messages and verdicts.
        folder: Where a file named by ``extends`` is looked for; default: the current one.

    Raises:
        ConfigError: As for `load_policy`.
    """
    document = _document(_parse_toml(text, name), f"policy {name}")
    documents = [document]
    if document.extends is not None:
        documents += _chain(document.extends, folder or Path())
    return _resolve(name, documents)


def _chain(source: str, folder: Path) -> list[_Document]:
    """The document of ``source`` and those that it extends, in this order."""
    documents: list[_Document] = []
    following: str | None = source
    while following is not None:
        if len(documents) == _MAX_EXTENDS:
            raise ConfigError(
                f"policy {source} extends itself, or others too deeply", expected=f"<= {_MAX_EXTENDS} files"
            )
        plain, where, folder = _read(following, folder)
        documents.append(_document(plain, where))
        following = documents[-1].extends
    return documents


def _read(source: str, folder: Path) -> tuple[dict[str, Any], str, Path]:
    if source in PRESETS:
        return _parse_toml(PRESETS[source], source), f"policy {source}", folder
    if source.startswith("quantlab:"):
        near = near_match(source, PRESETS)
        raise ConfigError(
            f"there is no preset policy {source!r}",
            expected="one of " + ", ".join(PRESETS),
            hint=f"did you mean {near!r}?" if near else None,
        )
    path = folder / source
    return read_toml(path, "policy"), f"policy {path}", path.parent


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise ConfigError(f"policy {name} is not valid TOML", got=str(cause)) from cause


def _document(plain: Mapping[str, object], where: str) -> _Document:
    # The schema first: of a later one, every other complaint would mislead.
    if "schema" in plain and plain["schema"] != POLICY_SCHEMA:
        raise ConfigError(
            f"{where} has another schema", got=repr(plain["schema"]), expected=f"schema = {POLICY_SCHEMA}"
        )
    document = from_plain(_Document, plain, where)
    from_plain(GateSection, document.gate, f"{where}.gate")
    for check in document.check:
        _check_check(check, f"check {check.id!r} of {where}")
    _refuse_duplicates([check.id for check in document.check], where)
    for waiver in document.waiver:
        if not waiver.reason.strip():
            raise ConfigError(
                f"the waiver of {waiver.check!r} in {where} has no reason", hint="name the ticket or decision"
            )
    return document


def _resolve(name: str, documents: Sequence[_Document]) -> Policy:
    """Merge, the base first: settings of ``[gate]`` one by one, checks by id, waivers by addition."""
    settings: dict[str, object] = {}
    checks: dict[str, Check] = {}
    waivers: list[Waiver] = []
    for document in reversed(documents):
        settings |= {key.replace("-", "_"): value for key, value in document.gate.items()}
        checks |= {check.id: check for check in document.check}
        waivers += document.waiver
    gate = from_plain(GateSection, settings, f"policy {name}.gate")
    if not _SMALLEST_ALPHA <= gate.alpha < 0.5:
        expected = f"above 0 (at least {_SMALLEST_ALPHA:g}) and below 0.5, such as 0.05"
        raise ConfigError(f"alpha of policy {name} is out of range", got=gate.alpha, expected=expected)
    if not checks:
        raise ConfigError(f"policy {name} has no check", hint='write a [[check]] or extends = "quantlab:default"')
    known = [*checks, *GUARD_IDS, *(f"degradation.{code}" for code in DegradationCode)]
    for waiver in waivers:
        if waiver.check not in known:
            near = near_match(waiver.check, known)
            raise ConfigError(
                f"a waiver of policy {name} names a check that does not exist",
                got=repr(waiver.check),
                expected="one of " + ", ".join(checks) + ", a guard, or degradation.<code>",
                hint=f"did you mean {near!r}?" if near else None,
            )
    return Policy(name, gate, tuple(checks.values()), tuple(waivers))


def _refuse_duplicates(ids: Sequence[str], where: str) -> None:
    for name in ids:
        if ids.count(name) > 1:
            raise ConfigError(f"{where} has two checks with the id {name!r}", hint="give each check its own id")


def _check_check(check: Check, where: str) -> None:
    """Refuse a check that could not mean what its writer thinks."""
    if not _ID.fullmatch(check.id) or check.id.startswith(RESERVED_PREFIXES):
        raise ConfigError(
            f"the id of {where} cannot be used",
            got=repr(check.id),
            expected="letters, digits, dots, dashes and underscores; not beginning with "
            + " or ".join(RESERVED_PREFIXES),
        )
    rules = METRICS[check.metric]
    if check.effective_claim not in rules.thresholds:
        raise ConfigError(
            f"{where} makes a claim that {check.metric} does not support",
            got=repr(str(check.effective_claim)),
            expected="one of " + ", ".join(rules.thresholds),
        )
    _check_threshold(check, rules.thresholds[check.effective_claim], where)
    if check.min_samples < 1:
        raise ConfigError(f"min_samples of {where} is out of range", got=check.min_samples, expected="at least 1")
    if check.output != "*" and check.metric not in _OUTPUT_METRICS:
        raise ConfigError(f"{where} names an output, but {check.metric} is not a metric of outputs", got=check.output)
    if (check.figure is None) == (check.metric is Metric.SCORE):
        raise ConfigError(
            f"{where} {'names no' if check.figure is None else 'names a'} figure",
            got=f"metric = {str(check.metric)!r}",
            expected="figure together with metric = 'score', such as figure = 'map'",
        )
    if check.slices is not None and check.metric is not Metric.SCORE:
        raise ConfigError(f"{where} has slices", got=check.slices, expected="only with metric = 'score'")
    if check.boundary is not None:
        if check.metric is not Metric.LATENCY_RATIO:
            raise ConfigError(f"{where} has a boundary", expected="only with metric = 'latency_ratio'")
        if check.boundary not in _BOUNDARIES:
            expected = "one of " + ", ".join(_BOUNDARIES)
            raise ConfigError(
                f"the boundary of {where} is not judged", got=repr(str(check.boundary)), expected=expected
            )
    if check.aa_noise_max is not None:
        if check.metric is not Metric.LATENCY_RATIO:
            raise ConfigError(f"{where} has aa_noise_max", expected="only with metric = 'latency_ratio'")
        if not 0.0 < check.aa_noise_max < math.inf:
            raise ConfigError(f"aa_noise_max of {where} is out of range", got=check.aa_noise_max, expected="above 0")


def _check_threshold(check: Check, allowed: tuple[Threshold, ...], where: str) -> None:
    given = [
        threshold
        for threshold, value in ((Threshold.MARGIN, check.margin), (Threshold.LIMIT, check.limit))
        if value is not None
    ]
    if (given or [Threshold.NONE]) not in [[threshold] for threshold in allowed]:
        raise ConfigError(
            f"{where} compares {check.metric} with the wrong thing",
            got=" and ".join(given) or "neither margin nor limit",
            expected=" or ".join(allowed) + f" for the claim {check.effective_claim}",
        )
    if check.margin is not None:
        _check_margin(check.margin, f"the margin of {where}")
        if check.margin.absolute is not None and check.metric is not Metric.SCORE:
            raise ConfigError(f"the margin of {where} is unclear", got="absolute", expected="absolute_pp or relative")
    if check.limit is not None:
        _check_limit(check.metric, check.limit, f"the limit of {where}")
        if check.metric in _PERCENT_METRICS and check.effective_claim is not Claim.ON_THIS_SET and check.limit == 100.0:
            raise ConfigError(
                f"the limit of {where} can never be shown: no sample proves a proportion of 100 %",
                got=check.limit,
                expected="below 100",
                hint='for "without exception on these samples" write claim = "on-this-set"',
            )


def _check_margin(margin: Margin, where: str) -> None:
    given = [name for name in ("absolute_pp", "relative", "absolute") if getattr(margin, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ConfigError(f"{where} is unclear", got=got, expected="one of absolute_pp, relative and absolute")
    if margin.absolute is not None and not 0.0 < margin.absolute < math.inf:
        raise ConfigError(f"{where} is out of range", got=margin.absolute, expected="above 0")
    if margin.absolute_pp is not None and not 0.0 < margin.absolute_pp < 100.0:
        raise ConfigError(f"{where} is out of range", got=margin.absolute_pp, expected="above 0 and below 100 pp")
    if margin.relative is not None and not 0.0 < margin.relative < 1.0:
        raise ConfigError(f"{where} is out of range", got=margin.relative, expected="a fraction above 0 and below 1")


def _check_limit(metric: Metric, limit: float, where: str) -> None:
    if not math.isfinite(limit):
        raise ConfigError(f"{where} is not a number", got=limit)
    if metric in _PERCENT_METRICS and not 1.0 < limit <= 100.0:
        raise ConfigError(f"{where} is out of range", got=limit, expected="percent: 99 for 99 %, not 0.99")
    if metric is Metric.COSINE and not -1.0 <= limit <= 1.0:
        raise ConfigError(f"{where} is out of range", got=limit, expected="from -1 to 1")
    if metric is not Metric.SCORE and not METRICS[metric].higher_is_better and limit < 0.0:
        raise ConfigError(f"{where} is out of range", got=limit, expected="at least 0")
