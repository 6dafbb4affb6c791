"""The linter of calibration caches: what TensorRT would refuse, silently ignore, or be misled by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from quantlab.calibrators.cache_provenance import CacheProvenance
from quantlab.calibrators.cache_text import CacheFault, CacheText, decode_cache, read_cache_text
from quantlab.calibrators.quantize import SMALLEST_SCALE
from quantlab.calibrators.tensorrt_cache import LAST_MAJOR, Algorithm, version_number, version_text
from quantlab.files import sha256_bytes
from quantlab.findings import Finding, Severity, sort_findings

FAR = 1e5
"""A scale this many times above or below the median is suspected. Activations of vision networks, probabilities and
logits included, span about four decades."""

GROWTH = 4.0
"""How far a tensor's range may exceed that of the tensor it cannot exceed: ranges are chosen for each by itself, and a
calibrator may have clipped the input more than the output."""

BEYOND = 2.0
"""How far a range may exceed a mathematical bound before it is suspected: TensorRT's histograms grow by powers of two,
so the range of a bounded tensor may end above the bound."""

_TENSORRT_NAME = re.compile(r"\(Unnamed Layer\* \d+\) \[[^\]]+\].*")


@dataclass(frozen=True, slots=True)
class NetworkTensors:
    """What the linter needs to know of a network.

    Attributes:
        names: Float activations of the model file, in graph order.
        constants: Stored tensors, which a cache may name too.
        copies: Tensor to the first tensor that holds the same values.
        limits: Largest magnitude that a tensor can have whatever the data, where its operator has one.
        within: Tensor to a tensor whose magnitude it cannot exceed.
    """

    names: tuple[str, ...]
    constants: frozenset[str]
    copies: Mapping[str, str]
    limits: Mapping[str, float]
    within: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CacheContext:
    """What a cache is linted against; what is None is not looked at.

    Attributes:
        tensorrt: TensorRT version that is to read it, dotted.
        calibrator: Algorithm of the calibrator that is to read it.
        network: Tensors of the model.
        model_sha256: Hash of the model.
        provenance: What is said of the cache; None if nothing is.
        provenance_error: Why its provenance cannot be read; None if it can.
    """

    tensorrt: str | None = None
    calibrator: Algorithm | None = None
    network: NetworkTensors | None = None
    model_sha256: str | None = None
    provenance: CacheProvenance | None = None
    provenance_error: str | None = None


NO_CONTEXT = CacheContext()

_FAULTS: Mapping[str, tuple[Severity, str, str]] = {
    "too-large": (Severity.ERROR, "no network has so many tensors", "check that it is the right file"),
    "not-utf8": (Severity.ERROR, "its tensor names match nothing", "copy the file in binary mode, or calibrate again"),
    "byte-order-mark": (Severity.ERROR, "TensorRT does not find the header", "save it without a byte order mark"),
    "windows-line-ends": (
        Severity.ERROR, "the header ends in a carriage return and matches no calibrator",
        "copy it in binary mode, or convert it with dos2unix",
    ),
    "no-header": (
        Severity.ERROR, "TensorRT rejects the cache and asks for calibration data instead", "calibrate again",
    ),
    "malformed-line": (Severity.ERROR, "the tensor is left without a scale", "calibrate again, or restore the line"),
    "repeated-tensor": (Severity.ERROR, "which scale counts depends on the reader", "keep one line a tensor"),
    "impossible-name": (Severity.ERROR, "no tensor can have this name", "calibrate again"),
    "unusable-scale": (Severity.ERROR, "quantization by it is undefined", "calibrate again; look for NaN values"),
    "no-final-newline": (
        Severity.INFO, "the file may have been cut off", "compare the number of tensors with another copy",
    ),
}  # fmt: skip

_Rule = Callable[[CacheText, CacheContext], Iterator[Finding]]


def lint_cache(data: bytes, context: CacheContext = NO_CONTEXT) -> tuple[Finding, ...]:
    """Everything wrong with a cache, worst first.

    Args:
        data: The file's content; any bytes.
        context: What to lint it against.

    Raises:
        CalibrationError: If ``context.tensorrt`` is no version.
    """
    text, undecodable = decode_cache(data)
    findings = [_of_fault(fault) for fault in undecodable]
    if not any(fault.rule == "too-large" for fault in undecodable):
        read = read_cache_text(text)
        findings += [_of_fault(fault) for fault in read.faults]
        for rule in _RULES:
            findings += rule(read, context)
    findings += _provenance(data, context)
    return sort_findings(findings)


def _of_fault(fault: CacheFault) -> Finding:
    severity, why, fix = _FAULTS[fault.rule]
    got = f": {fault.got}" if fault.got else ""
    return Finding(fault.rule, severity, (fault.tensor,) if fault.tensor else (), f"{fault.what}{got}", why, fix)


def _version(read: CacheText, context: CacheContext) -> Iterator[Finding]:
    if read.version is None:
        return
    found = version_text(read.version)
    if found is None:
        yield Finding(
            "unknown-version", Severity.WARNING, (), f"the header has version {read.version}",
            "no TensorRT release has this number", "write the version of the TensorRT that reads it into the header",
        )  # fmt: skip
    if context.tensorrt is None:
        return
    number, target = version_number(context.tensorrt), int(context.tensorrt.partition(".")[0])
    if target > LAST_MAJOR:
        yield Finding(
            "no-calibrators", Severity.ERROR, (), f"TensorRT {context.tensorrt} reads no calibration caches",
            f"calibrators were removed after TensorRT {LAST_MAJOR}",
            "make a Q/DQ model of it: quantlab convert-cache CACHE --model MODEL -o MODEL.qdq.onnx",
        )  # fmt: skip
    elif found is not None and int(found.partition(".")[0]) != target:
        yield Finding(
            "other-major-version", Severity.ERROR, (), f"written for TensorRT {found}, for {context.tensorrt}",
            "TensorRT rejects it, with a message about the algorithm, and calibrates again or builds without ranges",
            "rewrite the header: quantlab convert-cache CACHE --tensorrt VERSION -o OTHER.calib",
        )  # fmt: skip
    elif read.version != number:
        yield Finding(
            "other-version", Severity.INFO, (), f"written for TensorRT {found}, for {context.tensorrt}",
            "within a major version caches have been seen to be accepted; NVIDIA promises nothing",
            "look for 'Reading Calibration Cache' in TensorRT's log, or rewrite the header with --tensorrt",
        )  # fmt: skip


def _algorithm(read: CacheText, context: CacheContext) -> Iterator[Finding]:
    if read.algorithm is None:
        return
    if read.algorithm not in set(Algorithm):
        yield Finding(
            "unknown-algorithm", Severity.WARNING, (), f"the header names {read.algorithm!r}",
            "no calibrator class of TensorRT reads such a cache",
            "write the algorithm of the calibrator into the header",
        )  # fmt: skip
    if context.calibrator is not None and read.algorithm != context.calibrator:
        yield Finding(
            "other-algorithm", Severity.ERROR, (),
            f"the header names {read.algorithm}, {context.calibrator.calibrator} reads {context.calibrator}",
            "TensorRT rejects the cache, and calibrates again or builds without ranges",
            "use the calibrator class of the header, or rewrite the header with convert-cache --algorithm",
        )  # fmt: skip


def _scales(read: CacheText, context: CacheContext) -> Iterator[Finding]:
    if not read.lines:
        yield Finding("no-tensors", Severity.ERROR, (), "it holds no scale", "every layer stays in floating point",
                      "calibrate again")  # fmt: skip
    positive = [line.scale for line in read.lines if line.usable and line.scale > 0.0]
    middle = median(positive) if positive else 0.0
    for line in read.lines:
        if not line.usable:
            continue
        if line.scale == 0.0:
            yield Finding(
                "zero-scale", Severity.WARNING, (line.tensor,), f"line {line.number}: scale 0",
                "the tensor was zero in all calibration data; its layers stay in floating point",
                "calibrate with data that exercise this part of the network",
            )  # fmt: skip
        elif line.scale < SMALLEST_SCALE or not middle / FAR <= line.scale <= middle * FAR:
            yield Finding(
                "absurd-scale", Severity.WARNING, (line.tensor,),
                f"line {line.number}: amax {127 * line.scale:.3g}, the median is {127 * middle:.3g}",
                f"it lies a factor of more than {FAR:.0e} from the rest, or below the smallest normal float",
                "look at the tensor's values; overflow, a damaged line or another unit?",
            )  # fmt: skip


def _amax(read: CacheText) -> dict[str, float]:
    return {line.tensor: 127.0 * line.scale for line in read.lines if line.usable}


def _coverage(read: CacheText, context: CacheContext) -> Iterator[Finding]:
    network = context.network
    if network is None or not read.lines:
        return
    given = dict.fromkeys(line.tensor for line in read.lines)
    names = set(network.names)
    if not given.keys() & names:
        yield Finding(
            "other-model", Severity.ERROR, (), f"none of its {len(given)} tensors is in the model",
            "no scale would be used", "take the model that the cache was made with, or calibrate this one",
        )  # fmt: skip
        return
    holder = {network.copies.get(name, name): name for name in network.names if name in given}
    for name in network.names:
        if name not in given:
            same = holder.get(network.copies.get(name, name))
            yield Finding(
                "missing-tensor", Severity.WARNING, (name,),
                f"no scale; {same!r} holds the same values" if same else "no scale",
                "TensorRT warns of a missing scale and may keep the layers at this tensor in floating point",
                "calibrate the model file that TensorRT parses, before fusion",
            )  # fmt: skip
    for name in given:
        if name in names or name in network.constants:
            continue
        if _TENSORRT_NAME.fullmatch(name):
            yield Finding(
                "tensorrt-name", Severity.INFO, (name,), "a name that TensorRT made up",
                "it depends on TensorRT's parser; another version may number its layers otherwise",
                "none needed while the cache is read by the TensorRT that wrote it",
            )  # fmt: skip
        else:
            yield Finding(
                "unknown-tensor", Severity.WARNING, (name,), "the model has no such tensor",
                "the scale is not used; names after fusion or of another export look like this",
                "calibrate the model file that TensorRT parses, before fusion",
            )  # fmt: skip


def _bounds(read: CacheText, context: CacheContext) -> Iterator[Finding]:
    if context.network is None:
        return
    amax = _amax(read)
    for name, limit in context.network.limits.items():
        if name in amax and amax[name] > limit * BEYOND:
            yield Finding(
                "beyond-limit", Severity.WARNING, (name,),
                f"amax {amax[name]:.4g}, but its operator gives at most {limit:.4g}",
                "codes are wasted on values that cannot occur; were the numbers amax, or 127 / amax, not amax / 127?",
                "calibrate again, or check the tool that wrote the cache",
            )  # fmt: skip
    for name, source in context.network.within.items():
        if name in amax and amax.get(source, 0.0) > 0.0 and amax[name] > GROWTH * amax[source]:
            yield Finding(
                "beyond-input", Severity.WARNING, (name, source),
                f"amax {amax[name]:.4g} is {amax[name] / amax[source]:.1f} times its input's, which it cannot exceed",
                "one of the two is wrong, or the input is clipped hard",
                "compare both with quantlab calibrate on the same data",
            )  # fmt: skip


def _provenance(data: bytes, context: CacheContext) -> Iterator[Finding]:
    provenance = context.provenance
    if context.provenance_error is not None:
        yield Finding(
            "damaged-provenance", Severity.ERROR, (), context.provenance_error,
            "nothing says how the cache was made", "restore the provenance file, or write both again",
        )  # fmt: skip
    elif provenance is None:
        yield Finding(
            "no-provenance", Severity.INFO, (), "no provenance file lies beside it",
            "nothing says which model, data and preprocessing it was made with",
            "keep <cache>.json beside the cache; quantlab calibrate and convert-cache write it",
        )  # fmt: skip
    elif sha256_bytes(data) != provenance.cache_sha256:
        yield Finding(
            "other-provenance", Severity.ERROR, (),
            f"sha256 {sha256_bytes(data)[:16]}..., its provenance says {provenance.cache_sha256[:16]}...",
            "the cache was changed after it was written, or the provenance is of another",
            "restore the cache, or delete the provenance if the change was meant",
        )  # fmt: skip
    elif context.model_sha256 is not None and provenance.model_sha256 not in ("", context.model_sha256):
        yield Finding(
            "provenance-of-other-model", Severity.ERROR, (),
            f"of {provenance.model}, sha256 {provenance.model_sha256[:16]}..., not {context.model_sha256[:16]}...",
            "ranges of another model mean nothing for this one", "calibrate this model",
        )  # fmt: skip


_RULES: tuple[_Rule, ...] = (_version, _algorithm, _scales, _coverage, _bounds)

CACHE_RULES = (
    *_FAULTS, "unknown-version", "no-calibrators", "other-major-version", "other-version", "unknown-algorithm",
    "other-algorithm", "no-tensors", "zero-scale", "absurd-scale", "other-model", "missing-tensor", "tensorrt-name",
    "unknown-tensor", "beyond-limit", "beyond-input", "damaged-provenance", "no-provenance", "other-provenance",
    "provenance-of-other-model",
)  # fmt: skip
"""Names of all rules."""
