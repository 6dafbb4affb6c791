"""Lint: what is wrong with a file, whatever kind it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantlab.calibrators.cache_lint import CACHE_RULES, CacheContext, lint_cache
from quantlab.calibrators.cache_provenance import read_cache_provenance
from quantlab.documents import read_file
from quantlab.engines.sidecar import SIDECAR_SUFFIX
from quantlab.errors import CalibrationError, ConfigError
from quantlab.files import sha256_bytes
from quantlab.findings import LintReport
from quantlab.graph.lint import lint_model, rules_of
from quantlab.graph.model import load_model
from quantlab.graph.network import network_tensors
from quantlab.graph.targets import TargetProfile

CACHE_SUFFIXES = (".calib", ".cache")


@dataclass(frozen=True, slots=True)
class LintSettings:
    """What a file is linted against.

    Attributes:
        target: Whose rules a model is linted by.
        model: Model that a calibration cache is for; None if it is not compared with one.
        tensorrt: TensorRT version that is to read a calibration cache; None if it does not matter.
    """

    target: TargetProfile
    model: Path | None = None
    tensorrt: str | None = None


def lint_file(path: Path, settings: LintSettings) -> LintReport:
    """Lint a model by the rules of a target, or a TensorRT calibration cache.

    Raises:
        ConfigError: If the file is of a kind that has no rules, or a setting does not fit its kind.
        QuantlabError: If the file is missing, damaged or of no known kind.
    """
    if path.suffix in CACHE_SUFFIXES:
        return _lint_cache(path, settings)
    if path.name.endswith(SIDECAR_SUFFIX):
        hint = f"lint {path.name.removesuffix(SIDECAR_SUFFIX)}"
        raise ConfigError(f"{path} is an engine sidecar", expected="an ONNX model", hint=hint)
    if path.suffix == ".json":
        raise ConfigError(
            f"there are no rules for a result: {path}", expected="an ONNX model or a TensorRT calibration cache",
            hint="leave --lint out to see what is in it",
        )  # fmt: skip
    if settings.model is not None or settings.tensorrt is not None:
        raise ConfigError(f"--model and --tensorrt are for calibration caches, and {path} is a model")
    model = load_model(path)
    rules = tuple(rule.name for rule in rules_of(settings.target))
    findings = lint_model(model, settings.target)
    return LintReport(path.name, model.sha256, "model", settings.target.name, rules, findings)


def _lint_cache(path: Path, settings: LintSettings) -> LintReport:
    data = read_file(path, CalibrationError, "calibration cache")
    model = load_model(settings.model) if settings.model is not None else None
    provenance, fault = None, None
    try:
        provenance = read_cache_provenance(path)
    except CalibrationError as error:
        fault = error.what
    context = CacheContext(
        tensorrt=settings.tensorrt,
        network=network_tensors(model) if model is not None else None,
        model_sha256=model.sha256 if model is not None else None,
        provenance=provenance,
        provenance_error=fault,
    )
    findings = lint_cache(data, context)
    return LintReport(path.name, sha256_bytes(data), "calibration-cache", None, CACHE_RULES, findings)
