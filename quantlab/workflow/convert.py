"""Convert: ranges from one form into another, from TensorRT 10's calibration caches to TensorRT 11's Q/DQ models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantlab.calibrators.cache_provenance import cache_provenance_path, write_cache
from quantlab.calibrators.imported import STEPS, imported_table
from quantlab.calibrators.methods import IMPORTED
from quantlab.calibrators.ort_table import OrtTable
from quantlab.calibrators.table import CalibrationTable
from quantlab.calibrators.tensorrt_cache import (
    DEFAULT_VERSION,
    LAST_MAJOR,
    Algorithm,
    CalibrationCache,
    symmetric_scales,
    version_number,
    version_text,
)
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.documents import dump_json
from quantlab.errors import CalibrationError, ConfigError, EngineMismatch
from quantlab.files import check_folder, write_bytes, write_text
from quantlab.graph.metadata import moves_tensors, with_preprocess
from quantlab.graph.model import Model, load_model, save_model
from quantlab.graph.original import float_activations, value_classes
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import check_quantized, quantize_model
from quantlab.graph.targets import TENSORRT, TargetProfile
from quantlab.progress import Narrator
from quantlab.records import to_plain
from quantlab.workflow.build import check_table
from quantlab.workflow.ranges import ORT_FORMS, RangeKind, Ranges, kind_of_name, read_ranges
from quantlab.workflow.sources import open_model

CONVERT_SCHEMA = "quantlab.convert-cache/1"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """What to make.

    Attributes:
        kind: Kind of the output; None to tell it from the output's name.
        target: Q/DQ rules, for a Q/DQ model.
        tensorrt: TensorRT version for a cache's header, dotted; None for the input's, or the newest that reads caches.
        algorithm: Algorithm for a cache's header; None for the input's, or the one that fits the method.
        method: Range method to take from a table; None for its own.
        shapes: Input shapes to impose on the model.
        force: Whether an output that is there already may be replaced.
    """

    kind: RangeKind | None
    target: TargetProfile
    tensorrt: str | None
    algorithm: Algorithm | None
    method: str | None
    shapes: Mapping[str, tuple[int, ...]]
    force: bool


@dataclass(frozen=True, slots=True)
class Coverage:
    """How ranges and the tensors of a model file fit together.

    Attributes:
        covered: Tensors of the model that have a scale under their own name.
        aliased: Tensors that take the scale of a tensor that provably holds the same values, with that tensor's name.
        without_scale: Tensors of the model without a scale.
        without_tensor: Scales that name no tensor of the model.
    """

    covered: tuple[str, ...]
    aliased: Mapping[str, str]
    without_scale: tuple[str, ...]
    without_tensor: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made.

    Attributes:
        source: File name of the input.
        source_kind: Kind of the input.
        source_header: What the input is, with version and algorithm for a cache.
        kind: Kind of the output.
        header: The same of the output.
        tensors: Ranges that went into the output.
        layers: Layers quantized, for a Q/DQ model.
        coverage: How the ranges fit the model; None without a model.
        degradations: What was degraded.
        files: What was written, the output first.
    """

    source: str
    source_kind: RangeKind
    source_header: str
    kind: RangeKind
    header: str
    tensors: int
    layers: tuple[str, ...]
    coverage: Coverage | None
    degradations: tuple[Degradation, ...]
    files: tuple[str, ...]


def convert_ranges(
    source: Path, out: Path, model: Path | None, settings: ConvertSettings, narrator: Narrator
) -> Conversion:
    """Read ranges, fit them to a model if one is given, and write them in another form.

    Args:
        source: Cache, table, Q/DQ model or table of ONNX Runtime.
        out: File to write; or, if the settings name the kind and the name has no ending, a folder for it.
        model: The floating-point model; needed for a Q/DQ model.
        settings: What to make.
        narrator: Told of the model and what was degraded.

    Raises:
        QuantlabError: If an input is missing or damaged, flags contradict each other, the ranges belong to another
            model or name none of its tensors, or the output cannot be written.
    """
    kind, output = _output(source, out, settings)
    _check_flags(kind, model, settings)
    _check_output(source, output, kind, settings)
    ranges = read_ranges(source, settings.method)
    _check_own(ranges)
    prepared, original, coverage = None, None, None
    table = ranges.table
    degradations = list(ranges.degradations)
    if model is not None:
        original = load_model(model)
        prepared = open_model(model, settings.shapes or dict(table.provenance.shapes), narrator)
        _check_model(ranges, prepared)
        coverage = cover(ranges.scales(), original, ranges.path)
        degradations += _uncovered(coverage, prepared, kind)
        table = _fitted(ranges, coverage, prepared, degradations)
    layers: tuple[str, ...] = ()
    header = f"{kind}, {table.method} ranges"
    if kind is RangeKind.QDQ:
        if prepared is None:
            raise AssertionError("a Q/DQ model is made of a model")
        for entry in table.tensors:
            table.range_of(entry, settings.target.activation.name)  # finding it is the check
        quantized = quantize_model(prepared.model, table, settings.target)
        check_quantized(quantized.proto)
        degradations += quantized.degradations
        layers = tuple(quantized.layers)
        header = f"Q/DQ model for {settings.target.name}"
        files = save_model(with_preprocess(quantized.proto, table), output, prepared.model)
    elif kind is RangeKind.CACHE:
        cache = _cache(ranges, table, settings)
        header = f"TensorRT {version_text(cache.version)} {cache.algorithm}"
        files = write_cache(output, cache, table)
    elif kind is RangeKind.TABLE:
        write_text(output, replace(table, degradations=merge_degradations(degradations)).to_json())
        files = (output,)
    else:
        amax = {name: STEPS * scale for name, scale in symmetric_scales(table).items()}
        write_bytes(output, OrtTable(ORT_FORMS[kind], amax).render())
        files = (output,)
    found = merge_degradations(degradations)
    for degradation in found:
        narrator.warn(degradation)
    return Conversion(
        source.name, ranges.kind, ranges.header, kind, header, len(table.tensors), layers, coverage, found,
        tuple(str(path) for path in files),
    )  # fmt: skip


def _output(source: Path, out: Path, settings: ConvertSettings) -> tuple[RangeKind, Path]:
    named = kind_of_name(out)
    if settings.kind is None:
        if named is None:
            raise ConfigError(f"the name {out.name!r} does not say what to write",
                              expected=".calib, .cache, .json, .onnx, .flatbuffers, .txt or .ort.json",
                              hint="end the name so, or say --to " + "|".join(RangeKind))  # fmt: skip
        return named, out
    if out.suffix:
        return settings.kind, out
    name = "calibration" if settings.kind is RangeKind.TABLE else source.name.partition(".")[0]
    suffix = ".qdq.onnx" if settings.kind is RangeKind.QDQ else settings.kind.suffix
    return settings.kind, out / f"{name}{suffix}"


def _check_flags(kind: RangeKind, model: Path | None, settings: ConvertSettings) -> None:
    if kind is RangeKind.QDQ and model is None:
        raise ConfigError("a Q/DQ model is made of a floating-point model", got="no --model", expected="--model FILE")
    if kind is not RangeKind.CACHE and (settings.tensorrt or settings.algorithm):
        flag = "--tensorrt" if settings.tensorrt else "--algorithm"
        raise ConfigError(f"{flag} is for the header of a TensorRT cache", got=f"output {kind}", expected=".calib",
                          hint=f"leave {flag} out")  # fmt: skip
    if kind is not RangeKind.QDQ and settings.target is not TENSORRT:
        raise ConfigError(
            f"--target {settings.target.name} is for a Q/DQ model", got=f"output {kind}", expected=".onnx"
        )
    if settings.tensorrt is not None:
        version_number(settings.tensorrt)
        if int(settings.tensorrt.partition(".")[0]) > LAST_MAJOR:
            raise ConfigError(
                f"TensorRT {settings.tensorrt} reads no calibration caches", expected=f"at most {LAST_MAJOR}.x",
                hint="write a Q/DQ model for it: -o model.qdq.onnx --model FILE",
            )  # fmt: skip


def _check_output(source: Path, output: Path, kind: RangeKind, settings: ConvertSettings) -> None:
    check_folder(output.parent)
    taken = [output, *([cache_provenance_path(output)] if kind is RangeKind.CACHE else [])]
    if source.exists() and any(path.exists() and path.samefile(source) for path in taken):
        raise ConfigError(f"the output {output} is the input", expected="another name", hint="choose one with -o")
    for path in taken:
        if path.is_file() and not settings.force:
            raise ConfigError(
                f"{path} is there already", hint="choose another name with -o, or replace it with --force"
            )


def _check_model(ranges: Ranges, prepared: Prepared) -> None:
    """Refuse ranges that say they are of another model."""
    stated = ranges.table.provenance.model_sha256
    if ranges.kind is RangeKind.TABLE and ranges.table.provenance.graph_sha256:
        check_table(prepared, ranges.table)
    elif stated and stated != prepared.model.sha256:
        raise EngineMismatch(
            f"{ranges.path} was made from another model ({ranges.table.provenance.model})",
            got=f"sha256 {stated[:16]}...",
            expected=f"sha256 {prepared.model.sha256[:16]}... of {prepared.model.name}",
            hint="give the model that it was calibrated with",
        )


def cover(scales: Mapping[str, float], original: Model, where: Path) -> Coverage:
    """How scales fit the tensors of a model file.

    Raises:
        CalibrationError: If they have nothing in common.
    """
    names = float_activations(original.proto)
    classes = value_classes(original.proto)
    covered = tuple(name for name in names if name in scales)
    if not covered:
        raise CalibrationError(
            f"{where} and model {original.path or original.name} have no tensor in common",
            got=f"{len(scales)} tensors: {', '.join(list(scales)[:3])}, ...",
            expected=f"tensors of the model: {', '.join(names[:3])}, ...",
            hint="take the model file that was calibrated; names change with every export",
        )
    holder = {classes[name]: name for name in reversed(covered)}
    aliased = {name: holder[classes[name]] for name in names if name not in scales and classes[name] in holder}
    stored = {tensor.name for tensor in original.proto.graph.initializer}
    known = {*names, *stored}
    return Coverage(
        covered, aliased, tuple(name for name in names if name not in scales and name not in aliased),
        tuple(name for name in scales if name not in known),
    )  # fmt: skip


def _uncovered(coverage: Coverage, prepared: Prepared, kind: RangeKind) -> list[Degradation]:
    """What does not fit: for a Q/DQ model, of the prepared graph alone, since the rest of the file is folded away."""
    found = []
    needed = set(float_activations(prepared.model.proto)) if kind is RangeKind.QDQ else None
    lacking = [name for name in coverage.without_scale if needed is None or name in needed]
    if lacking:
        message = "tensors of the model have no imported range"
        found.append(Degradation.of(DegradationCode.UNMATCHED_RANGES, message, lacking))
    if coverage.without_tensor:
        message = "ranges name tensors that the model has not"
        found.append(Degradation.of(DegradationCode.UNMATCHED_RANGES, message, coverage.without_tensor))
    return found


def _fitted(
    ranges: Ranges, coverage: Coverage, prepared: Prepared, degradations: list[Degradation]
) -> CalibrationTable:
    """The ranges as a table of this model: with the tensors that share a range, and the model's hashes."""
    if ranges.kind is RangeKind.TABLE and ranges.table.method != IMPORTED:
        entries = ranges.table.entries()
        further = [replace(entries[source], name=name) for name, source in coverage.aliased.items()]
        return replace(ranges.table, tensors=tuple(sorted((*ranges.table.tensors, *further), key=lambda e: e.name)))
    scales = ranges.scales()
    scales |= {name: scales[source] for name, source in coverage.aliased.items()}
    model = prepared.model
    return imported_table(
        scales, ranges.path.name, model=model.path.name if model.path else model.name, model_sha256=model.sha256,
        graph_sha256=prepared.graph_sha256, degradations=merge_degradations(degradations),
    )  # fmt: skip


def _check_own(ranges: Ranges) -> None:
    """Refuse ranges of a recovered model, which are those of no other graph.

    Raises:
        ConfigError: If recovery moved what tensors hold.
    """
    if moves_tensors(ranges.recovered):
        raise ConfigError(
            f"{ranges.path} holds ranges of a recovered model, in which tensors hold other values",
            got=f"recovered by {', '.join(ranges.recovered)}",
            expected="ranges of the model itself",
            hint="convert the calibration.json, or the cache, that quantlab calibrate wrote beside recovered/",
        )


def _cache(ranges: Ranges, table: CalibrationTable, settings: ConvertSettings) -> CalibrationCache:
    """A cache with the header that was asked for, else the input cache's, else the one that fits the table."""
    made = CalibrationCache.from_table(table, settings.tensorrt or DEFAULT_VERSION, settings.algorithm)
    if ranges.cache is None:
        return made
    version = made.version if settings.tensorrt else ranges.cache.version
    algorithm = made.algorithm if settings.algorithm else ranges.cache.algorithm
    order = [*(name for name in ranges.cache.scales if name in made.scales), *made.scales]
    return CalibrationCache(version, algorithm, {name: made.scales[name] for name in dict.fromkeys(order)})


def conversion_document(done: Conversion) -> str:
    """What ``convert-cache --json`` prints."""
    return dump_json({"schema": CONVERT_SCHEMA, **to_plain(done)})


def conversion_text(done: Conversion) -> str:
    """What ``convert-cache`` prints."""
    lines = [
        f"{done.source} ({done.source_header}) -> {done.header}, {done.tensors} tensors",
        *([f"  quantized layers       {len(done.layers)}"] if done.kind is RangeKind.QDQ else []),
    ]
    fit = done.coverage
    if fit is not None:
        shared = [f"{name} = {source}" for name, source in fit.aliased.items()]
        lines += [
            f"  tensors with a scale   {len(fit.covered)}",
            *_named("tensors sharing one", shared),
            *_named("tensors without", fit.without_scale),
            *_named("scales without tensor", fit.without_tensor),
        ]
    return "\n".join([*lines, *(f"wrote {path}" for path in done.files)])


def _named(label: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", ... {len(names) - _SHOWN} more, all with --json" if len(names) > _SHOWN else ""
    return [f"  {label:<22} {len(names)}: {', '.join(names[:_SHOWN])}{more}"]
