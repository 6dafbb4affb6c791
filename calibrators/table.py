"""The calibration table: every tensor's range by every method and scheme, with provenance; ``calibration.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from quantlab.calibrators.methods import check_method
from quantlab.calibrators.quantize import SCHEMES
from quantlab.degradation import Degradation
from quantlab.documents import canonical_sha256, dump_json, read_json
from quantlab.errors import CalibrationError, ConfigError
from quantlab.records import from_plain, to_plain

TABLE_SCHEMA = "quantlab.calibration/2"


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The range of one tensor by one method, for one scheme.

    Attributes:
        low: Lower bound, in the tensor's units.
        high: Upper bound; amax for symmetric schemes.
        clipped_fraction: Share of calibration values outside, 0 to 1; None where values were not counted.
        sqnr_db: Expected signal-to-quantization-noise ratio of the calibration values, in dB; None where values were
            not counted.
        candidates: Ranges the method compared.
        fallback: Why min-max was used in place of the method; None if it was not.
        picked: The method whose range this is, where ``auto`` or a recovery chose it; None for the methods themselves.
    """

    low: float
    high: float
    clipped_fraction: float | None
    sqnr_db: float | None
    candidates: int
    fallback: str | None
    picked: str | None = None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One activation tensor.

    Attributes:
        name: Name in the prepared graph.
        minimum: Exact minimum of the finite values.
        maximum: Exact maximum.
        count: Finite values seen; 0 if the ranges were imported, and for operands that are stored in the model.
        non_finite: NaN and infinite values seen.
        zero_fraction: Share of exact zeros; None where values were not counted.
        kind: What is odd about the values (see `Distribution.kind`); empty for ordinary ones.
        ranges: Scheme name to method name to range.
        non_finite_sample: Id of the sample, the first by name, that made NaN or infinite values; None without.
        absent_samples: Samples in which the tensor was empty or not given.
    """

    name: str
    minimum: float
    maximum: float
    count: int
    non_finite: int
    zero_fraction: float | None
    kind: str
    ranges: Mapping[str, Mapping[str, TensorRange]]
    non_finite_sample: str | None = None
    absent_samples: int = 0

    @property
    def constant(self) -> bool:
        """Whether every finite value was the same."""
        return self.minimum == self.maximum

    @property
    def counted(self) -> bool:
        """Whether values were counted; else only minimum and maximum are known, and every range is of them."""
        return self.zero_fraction is not None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a table. It holds no paths: the same model, data and settings give the same table anywhere.

    Attributes:
        quantlab: Version.
        source: ``observed`` if the model was run on data, else the file that the ranges were imported from.
        model: File name of the model.
        model_sha256: Hash of the model file and its external data.
        graph_sha256: Hash of the prepared graph whose tensors the table names.
        shapes: Input shapes that were imposed, as given.
        preprocess: The preprocessing in plain values; None for ready tensors, and where it was assumed.
        preprocess_sha256: Its hash, also where it was assumed; empty for ready tensors.
        samples: Content hashes of the samples, sorted, to find overlap with evaluation data.
        percentile: Share kept by the percentile method, in per cent.
    """

    quantlab: str
    source: str
    model: str
    model_sha256: str
    graph_sha256: str
    shapes: Mapping[str, tuple[int, ...]]
    preprocess: Mapping[str, object] | None
    preprocess_sha256: str
    samples: tuple[str, ...]
    percentile: float

    @property
    def data_sha256(self) -> str:
        """Digest of the samples' contents, the same for any order and whatever they are called."""
        return samples_sha256(self.samples)


def samples_sha256(samples: Iterable[str]) -> str:
    """Digest of samples, given the hashes of their contents in any order."""
    return canonical_sha256({"samples": sorted(samples)})


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """Why method ``auto`` took the ranges it took.

    Attributes:
        target: Rules of the quantized graphs that were compared.
        n_search: Calibration samples of the search.
        n_check: Other calibration samples, on which the figures below were measured.
        sqnr_db: SQNR at the model's outputs with each method used for all tensors, by method.
        swept_sqnr_db: SQNR with the method that the search found for each tensor.
        taken: ``sweep``, or the single method that was better.
        picked: Number of tensors by method.
    """

    target: str
    n_search: int
    n_check: int
    sqnr_db: Mapping[str, float]
    swept_sqnr_db: float
    taken: str
    picked: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges of every observed tensor.

    Attributes:
        method: Method whose ranges are used where none is named.
        n_samples: Samples that went in.
        tensors: Sorted by name.
        provenance: What made it.
        degradations: What was degraded on the way.
        auto: The evidence of method ``auto``; None if it was not used.
        recovered: Steps of the recovery whose model the ranges are of; empty if they are of the prepared graph itself.
    """

    method: str
    n_samples: int
    tensors: tuple[TensorEntry, ...]
    provenance: Provenance
    degradations: tuple[Degradation, ...]
    auto: AutoChoice | None = None
    recovered: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the whole table; ``recovered`` is in it only where it says something."""
        plain = to_plain(self)
        if not self.recovered:
            del plain["recovered"]
        return canonical_sha256(plain)

    def entries(self) -> dict[str, TensorEntry]:
        """Entries by tensor name."""
        return {entry.name: entry for entry in self.tensors}

    def range_of(self, entry: TensorEntry, scheme: str) -> TensorRange:
        """The range of a tensor for a scheme by the table's method.

        Raises:
            ConfigError: If the table does not hold it.
        """
        by_method = entry.ranges.get(scheme, {})
        if self.method not in by_method:
            raise ConfigError(
                f"the calibration table has no {self.method} range of tensor {entry.name!r} for {scheme}",
                got=", ".join(by_method) or f"no ranges for {scheme}",
                expected=self.method,
                hint="calibrate with the --target that the ranges are for",
            )
        return by_method[self.method]

    def with_method(self, method: str) -> CalibrationTable:
        """The same table with another method chosen.

        Raises:
            ConfigError: If there is no such method, or the table does not hold it.
        """
        check_method(method)
        for entry in self.tensors:
            if not any(method in by_method for by_method in entry.ranges.values()):
                raise ConfigError(
                    f"the calibration table has no {method} range of tensor {entry.name!r}",
                    expected=", ".join(sorted({name for by_method in entry.ranges.values() for name in by_method})),
                    hint="calibrate again",
                )
        return replace(self, method=method)

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": TABLE_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> CalibrationTable:
        """Read ``calibration.json``.

        Raises:
            CalibrationError: If it is missing, damaged, of another schema, or holds impossible ranges.
        """
        document = read_json(path, TABLE_SCHEMA, CalibrationError, "calibration table")
        document.pop("schema")
        table = from_plain(cls, document, str(path), CalibrationError)
        names = [entry.name for entry in table.tensors]
        if len(set(names)) != len(names):
            raise CalibrationError(f"calibration table {path} names a tensor twice")
        for entry in table.tensors:
            _check_entry(entry, table.method, path)
        return table


def _check_entry(entry: TensorEntry, table_method: str, path: Path) -> None:
    if not any(table_method in by_method for by_method in entry.ranges.values()):
        raise CalibrationError(
            f"{path}: tensor {entry.name!r} has no {table_method} range",
            got=", ".join(sorted({name for by_method in entry.ranges.values() for name in by_method})) or "no range",
            expected=f"a range of {table_method}, the table's method",
            hint="run quantlab calibrate again",
        )
    for scheme, by_method in entry.ranges.items():
        if scheme not in SCHEMES:
            raise CalibrationError(
                f"{path}: tensor {entry.name!r} has an unknown scheme", got=scheme, expected=", ".join(SCHEMES)
            )
        for method, chosen in by_method.items():
            finite = abs(chosen.low) < float("inf") and abs(chosen.high) < float("inf")
            if not finite or chosen.low > chosen.high:
                raise CalibrationError(
                    f"{path}: tensor {entry.name!r} has an impossible {method} range",
                    got=f"[{chosen.low}, {chosen.high}]",
                    expected="two finite numbers, low <= high",
                )
