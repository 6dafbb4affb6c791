"""Where a calibration cache comes from: ``<cache>.json`` beside it, since the cache itself has no place for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from quantlab.calibrators.table import CalibrationTable
from quantlab.calibrators.tensorrt_cache import CalibrationCache, version_text
from quantlab.documents import dump_json, read_file, read_json
from quantlab.errors import CalibrationError, EngineMismatch
from quantlab.files import is_file, remove_file, sha256_bytes, write_text
from quantlab.records import from_plain, to_plain

CACHE_PROVENANCE_SCHEMA = "quantlab.cache-provenance/1"
CACHE_PROVENANCE_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class CacheProvenance:
    """What made a calibration cache.

    Attributes:
        quantlab: Version of quantlab that wrote the cache.
        cache: File name of the cache.
        cache_sha256: Hash of its content.
        source: ``observed`` if the model was run on data, else the file that the ranges were taken from.
        model: File name of the model; empty if it is not known.
        model_sha256: Hash of the model file and its external data; empty if it is not known.
        table_sha256: Hash of the calibration table; empty if TensorRT itself calibrated.
        data_sha256: Digest of the calibration samples; empty if the ranges were imported.
        preprocess_sha256: Hash of the preprocessing; empty for ready tensors and imported ranges.
        method: Range method; ``tensorrt`` if TensorRT itself calibrated.
        algorithm: Algorithm in the cache's header.
        tensorrt: TensorRT version in the header, dotted; the bare number if no release has it.
        tensors: Number of scales.
        shapes: Shape of a batch by model input, batch axis first, if TensorRT itself calibrated: its ranges depend on
            it. Empty for ranges of a table, which do not.
    """

    quantlab: str
    cache: str
    cache_sha256: str
    source: str
    model: str
    model_sha256: str
    table_sha256: str
    data_sha256: str
    preprocess_sha256: str
    method: str
    algorithm: str
    tensorrt: str
    tensors: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, cache: CalibrationCache, table: CalibrationTable) -> CacheProvenance:
        """Of a cache that is written as file ``name`` from a table."""
        made = table.provenance
        return cls(
            version("quantlab"), name, sha256_bytes(cache.render().encode("utf-8")), made.source, made.model,
            made.model_sha256, table.sha256, made.data_sha256 if made.samples else "", made.preprocess_sha256,
            table.method, cache.algorithm, version_text(cache.version) or str(cache.version), len(cache.scales),
        )  # fmt: skip


def cache_provenance_path(cache: Path) -> Path:
    """The file beside a cache that says where it comes from."""
    return cache.with_name(cache.name + CACHE_PROVENANCE_SUFFIX)


def write_cache(path: Path, cache: CalibrationCache, table: CalibrationTable) -> tuple[Path, Path]:
    """Write a table's cache and its provenance, each whole or not at all.

    Returns:
        Both paths, the cache first.

    Raises:
        CalibrationError: If a name or scale cannot stand in a cache.
        OutputError: If a file cannot be written.
    """
    return write_cache_text(path, cache.render(), CacheProvenance.of(path.name, cache, table))


def write_cache_text(path: Path, text: str, provenance: CacheProvenance) -> tuple[Path, Path]:
    """Write the text of a cache and its provenance, each whole or not at all.

    The provenance goes first if it is there and comes last, so that an interruption leaves a cache without provenance
    and never one with another's.

    Returns:
        Both paths, the cache first.

    Raises:
        OutputError: If a file cannot be written.
    """
    beside = cache_provenance_path(path)
    remove_file(beside)
    write_text(path, text)
    write_text(beside, dump_json({"schema": CACHE_PROVENANCE_SCHEMA, **to_plain(provenance)}))
    return path, beside


def read_cache_provenance(path: Path) -> CacheProvenance | None:
    """What is said of a cache; None if nothing is. It is not compared with the cache.

    Raises:
        CalibrationError: If the file is damaged or of another schema.
    """
    beside = cache_provenance_path(path)
    if not is_file(beside):
        return None
    document = read_json(beside, CACHE_PROVENANCE_SCHEMA, CalibrationError, "cache provenance")
    document.pop("schema")
    return from_plain(CacheProvenance, document, str(beside), CalibrationError)


def load_cache(path: Path) -> tuple[CalibrationCache, CacheProvenance | None]:
    """Read a cache, and its provenance if that is there.

    Raises:
        CalibrationError: If either file is damaged.
        EngineMismatch: With both hashes, if the provenance is of another cache.
    """
    data = read_file(path, CalibrationError, "calibration cache")
    cache = CalibrationCache.from_bytes(data, str(path))
    provenance = read_cache_provenance(path)
    if provenance is not None:
        check_cache_provenance(path, data, provenance)
    return cache, provenance


def check_cache_provenance(path: Path, data: bytes, provenance: CacheProvenance) -> None:
    """Refuse a cache whose content is not what its provenance was written for.

    Raises:
        EngineMismatch: With both hashes.
    """
    actual = sha256_bytes(data)
    if actual != provenance.cache_sha256:
        raise EngineMismatch(
            f"calibration cache {path} is not the one that {cache_provenance_path(path).name} describes",
            got=f"sha256 {actual[:16]}... of the cache",
            expected=f"sha256 {provenance.cache_sha256[:16]}...",
            hint="restore the cache, or delete the provenance file if the change was meant",
        )


__all__ = [
    "CACHE_PROVENANCE_SCHEMA",
    "CacheProvenance",
    "cache_provenance_path",
    "check_cache_provenance",
    "load_cache",
    "read_cache_provenance",
    "write_cache",
    "write_cache_text",
]
