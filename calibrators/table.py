"""The calibration table: every tensor's range by every method and scheme, with provenance; ``calibration.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantlab.calibrators.error import clipped_fraction, sqnr_db
from quantlab.calibrators.histogram import Distribution, Histogram
from quantlab.calibrators.methods import check_method
from quantlab.calibrators.protocol import RangeMethod
from quantlab.calibrators.quantize import SCHEMES, Scheme
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import canonical_sha256, dump_json, read_json
from quantlab.errors import CalibrationError, ConfigError
from quantlab.records import from_plain, to_plain

TABLE_SCHEMA = "quantlab.calibration/1"


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The range of one tensor by one method, for one scheme.

    Attributes:
        low: Lower bound, in the tensor's units.
        high: Upper bound; amax for symmetric schemes.
        clipped_fraction: Share of calibration values outside, 0 to 1.
        sqnr_db: Expected signal-to-quantization-noise ratio of the calibration values, in dB.
        candidates: Ranges the method compared.
        fallback: Why min-max was used in place of the method; None if it was not.
    """

    low: float
    high: float
    clipped_fraction: float
    sqnr_db: float
    candidates: int
    fallback: str | None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One activation tensor.

    Attributes:
        name: Name in the prepared graph.
        minimum: Exact minimum of the finite values.
        maximum: Exact maximum.
        count: Finite values seen.
        non_finite: NaN and infinite values seen.
        zero_fraction: Share of exact zeros.
        ranges: Scheme name to method name to range.
    """

    name: str
    minimum: float
    maximum: float
    count: int
    non_finite: int
    zero_fraction: float
    ranges: Mapping[str, Mapping[str, TensorRange]]

    @property
    def constant(self) -> bool:
        """Whether every finite value was the same."""
        return self.minimum == self.maximum


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a table.

    Attributes:
        quantlab: Version.
        model: File name of the model.
        model_sha256: Hash of the model file and its external data.
        graph_sha256: Hash of the prepared graph whose tensors the table names.
        shapes: Input shapes that were imposed, as given.
        data: The data set in its own words.
        data_sha256: Digest of its manifest, the same for any order.
        preprocess_sha256: Hash of the preprocessing; empty for ready tensors.
        samples: Content hashes of the samples, sorted, to find overlap with evaluation data.
        percentile: Share kept by the percentile method, in per cent.
    """

    quantlab: str
    model: str
    model_sha256: str
    graph_sha256: str
    shapes: Mapping[str, tuple[int, ...]]
    data: Mapping[str, object]
    data_sha256: str
    preprocess_sha256: str
    samples: tuple[str, ...]
    percentile: float


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges of every observed tensor.

    Attributes:
        method: Method whose ranges are used where none is named.
        n_samples: Samples that went in.
        tensors: Sorted by name.
        provenance: What made it.
        degradations: What was degraded on the way.
    """

    method: str
    n_samples: int
    tensors: tuple[TensorEntry, ...]
    provenance: Provenance
    degradations: tuple[Degradation, ...]

    @property
    def sha256(self) -> str:
        """Hash of the whole table."""
        return canonical_sha256(to_plain(self))

    def entries(self) -> dict[str, TensorEntry]:
        """Entries by tensor name."""
        return {entry.name: entry for entry in self.tensors}

    def with_method(self, method: str) -> CalibrationTable:
        """The same table with another method chosen.

        Raises:
            ConfigError: If there is no such method, or the table does not hold it.
        """
        check_method(method)
        for entry in self.tensors:
            for scheme, by_method in entry.ranges.items():
                if method not in by_method:
                    raise ConfigError(
                        f"the calibration table has no {method} range of tensor {entry.name!r} for {scheme}",
                        expected=", ".join(by_method),
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
    for needed in SCHEMES:
        if table_method not in entry.ranges.get(needed, {}):
            raise CalibrationError(
                f"{path}: tensor {entry.name!r} has no {table_method} range for the scheme {needed}",
                got=", ".join(entry.ranges.get(needed, {})) or "no range at all",
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


def measure_tensor(name: str, histogram: Histogram, methods: Sequence[RangeMethod]) -> TensorEntry:
    """Ranges of one tensor by every method and scheme, from its histogram.

    Raises:
        CalibrationError: If the tensor has no finite value.
    """
    try:
        distribution = histogram.distribution()
    except CalibrationError as cause:
        raise CalibrationError(
            f"tensor {name!r} has no finite value", got=f"{histogram.non_finite} NaN or infinite", hint=cause.hint
        ) from cause
    ranges = {
        scheme.name: {method.name: _measure(distribution, method, scheme) for method in methods}
        for scheme in SCHEMES.values()
    }
    return TensorEntry(
        name,
        distribution.minimum,
        distribution.maximum,
        histogram.total,
        histogram.non_finite,
        distribution.zero_fraction,
        ranges,
    )


def _measure(distribution: Distribution, method: RangeMethod, scheme: Scheme) -> TensorRange:
    chosen = method.choose(distribution, scheme)
    return TensorRange(
        chosen.low,
        chosen.high,
        clipped_fraction(distribution, chosen.low, chosen.high),
        sqnr_db(distribution, chosen.low, chosen.high, scheme),
        chosen.candidates,
        chosen.fallback,
    )


def table_degradations(tensors: Iterable[TensorEntry], method: str) -> tuple[Degradation, ...]:
    """What the chosen method could not do: fallbacks, and non-finite values left out."""
    entries = list(tensors)
    result = []
    fallen = [
        entry.name
        for entry in entries
        if not entry.constant and any(by_method[method].fallback for by_method in entry.ranges.values())
    ]
    if fallen:
        result.append(
            Degradation.of(
                DegradationCode.METHOD_FALLBACK, f"{method} has no meaning for these tensors; min-max was used", fallen
            )
        )
    broken = [entry.name for entry in entries if entry.non_finite]
    if broken:
        result.append(
            Degradation.of(
                DegradationCode.NON_FINITE_VALUES, "NaN or infinite activations were left out of ranges", broken
            )
        )
    return tuple(result)
