"""What a TensorRT calibrator can serve in place of data: a calibration table, or a cache that belongs to the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantlab.calibrators.cache_provenance import (
    CacheProvenance,
    cache_provenance_path,
    check_cache_provenance,
    read_cache_provenance,
)
from quantlab.calibrators.table import CalibrationTable
from quantlab.calibrators.tensorrt_cache import Algorithm, CalibrationCache, version_number, version_text
from quantlab.calibrators.tensorrt_feed import DataSurvey, Shapes
from quantlab.datasets.inputs import format_shape
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import read_file
from quantlab.errors import CalibrationError, EngineMismatch


@dataclass(frozen=True, slots=True)
class CalibrationIdentity:
    """What a cache must have been made for to be used.

    Attributes:
        algorithm: Of the calibrator.
        tensorrt: Version that runs, dotted, of three numbers.
        model: File name of the model; empty if it has none.
        model_sha256: Hash of the model file and its external data; empty if it is not known.
        preprocess_sha256: Hash of the preprocessing; empty for ready tensors, and without data.
        found: The data; None if there are none.
    """

    algorithm: Algorithm
    tensorrt: str
    model: str = ""
    model_sha256: str = ""
    preprocess_sha256: str = ""
    found: DataSurvey | None = None


@dataclass(frozen=True, slots=True)
class CacheOffer:
    """A cache for ``read_calibration_cache``.

    Attributes:
        origin: File name of the cache, or what else it is made from.
        data: Exactly what TensorRT reads.
        cache: The same, parsed.
        degradations: What is not known of it.
    """

    origin: str
    data: bytes
    cache: CalibrationCache
    degradations: tuple[Degradation, ...] = ()


def offer_table(table: CalibrationTable, identity: CalibrationIdentity) -> CacheOffer:
    """A table's ranges by its own method, under the header that the running TensorRT takes.

    Raises:
        EngineMismatch: With both hashes, if the table is of another model.
        ConfigError: If the table has no symmetric range of a tensor.
        CalibrationError: If a name or scale cannot stand in a cache, or there is none.
    """
    made = table.provenance
    if made.model_sha256 and identity.model_sha256 and made.model_sha256 != identity.model_sha256:
        raise EngineMismatch(
            "the calibration table was made for another model",
            got=f"{identity.model or 'a model'} with sha256 {identity.model_sha256[:16]}...",
            expected=f"{made.model} with sha256 {made.model_sha256[:16]}...",
            hint="calibrate this model",
        )
    cache = CalibrationCache.from_table(table, identity.tensorrt, identity.algorithm)
    origin = f"calibration table of {made.model or made.source}"
    return CacheOffer(origin, cache.render().encode("utf-8"), _with_scales(cache, origin))


def offer_file(path: Path, identity: CalibrationIdentity) -> CacheOffer:
    """A cache file whose header TensorRT takes and whose provenance fits.

    Raises:
        CalibrationError: If the cache or its provenance is damaged, or the cache holds no scale.
        EngineMismatch: With both values of everything that differs.
    """
    data = read_file(path, CalibrationError, "calibration cache")
    cache = _with_scales(CalibrationCache.from_bytes(data, str(path)), str(path))
    provenance = read_cache_provenance(path)
    if provenance is not None:
        check_cache_provenance(path, data, provenance)
    differences = [*_header(cache, identity), *(_made_for(provenance, identity) if provenance else ())]
    if differences:
        raise EngineMismatch(
            f"calibration cache {path} does not fit",
            got="; ".join(got for got, _ in differences),
            expected="; ".join(expected for _, expected in differences),
            hint="delete it to calibrate again, name another one, or, if the header alone differs and that is meant, "
            "write a new one with quantlab convert-cache",
        )
    return CacheOffer(path.name, data, cache, tuple(_unverified(path, provenance, identity)))


def _with_scales(cache: CalibrationCache, origin: str) -> CalibrationCache:
    if not cache.scales:
        raise CalibrationError(f"{origin} holds no scale", got="a header alone", expected="at least one tensor",
                               hint="calibrate again")  # fmt: skip
    return cache


def _header(cache: CalibrationCache, identity: CalibrationIdentity) -> Iterator[tuple[str, str]]:
    """TensorRT rejects these itself, with a message that names the wrong reason, and calibrates on nothing."""
    if not fits_algorithm(cache.algorithm, identity.algorithm):
        yield f"algorithm {cache.algorithm}", f"algorithm {identity.algorithm}, of {identity.algorithm.calibrator}"
    if cache.version != version_number(identity.tensorrt):
        yield f"TensorRT {version_text(cache.version) or cache.version}", f"TensorRT {identity.tensorrt}, which runs"


def fits_algorithm(header: str, algorithm: Algorithm) -> bool:
    """Whether the algorithm in a header is that of a calibrator.

    What the legacy calibrator writes is not published: there, any word that is not another calibrator's will do.
    """
    if algorithm is Algorithm.LEGACY:
        return header not in set(Algorithm) - {Algorithm.LEGACY}
    return header == algorithm


def _made_for(made: CacheProvenance, wanted: CalibrationIdentity) -> Iterator[tuple[str, str]]:
    if made.model_sha256 and wanted.model_sha256 and made.model_sha256 != wanted.model_sha256:
        yield f"model {made.model} {made.model_sha256[:16]}...", f"model {wanted.model} {wanted.model_sha256[:16]}..."
    if wanted.found is None or not made.data_sha256:
        return
    if made.data_sha256 != wanted.found.data_sha256:
        yield f"data {made.data_sha256[:16]}...", f"data {wanted.found.data_sha256[:16]}..."
    if made.preprocess_sha256 != wanted.preprocess_sha256:
        got, expected = (
            f"preprocessing {digest[:16]}..." if digest else "no preprocessing"
            for digest in (made.preprocess_sha256, wanted.preprocess_sha256)
        )
        yield got, expected
    if made.shapes and made.shapes != wanted.found.shapes:
        yield f"batches {_shapes(made.shapes)}", f"batches {_shapes(wanted.found.shapes)}"


def _shapes(shapes: Shapes) -> str:
    return ", ".join(f"{name} {format_shape(shape)}" for name, shape in sorted(shapes.items()))


def _unverified(
    path: Path, made: CacheProvenance | None, identity: CalibrationIdentity
) -> Iterator[Degradation]:  # fmt: skip
    if made is None:
        missing = f"no {cache_provenance_path(path).name} beside it says which model and data it was made with"
    elif identity.model_sha256 and not made.model_sha256:
        missing = f"{cache_provenance_path(path).name} does not say which model it was made with"
    elif identity.found is not None and not made.data_sha256:
        missing = f"its ranges were taken from {made.source}, not from these data"
    else:
        return
    yield Degradation(DegradationCode.UNVERIFIED_CACHE, missing, 1, (path.name,))


__all__ = ["CacheOffer", "CalibrationIdentity", "fits_algorithm", "offer_file", "offer_table"]
