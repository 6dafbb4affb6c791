"""The file of samples: what each variant gave on each sample, so that every figure can be computed again.

One row for each sample and variant, written while the samples stream through; memory holds one row group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.errors import DataError, MeasurementError
from quantlab.files import replacing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SAMPLES_NAME = "samples.parquet"
SAMPLES_SCHEMA = "quantlab.samples/1"

_KEY = b"quantlab"
_ROWS_A_GROUP = 8192
_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")


def escaped(name: str) -> str:
    r"""``name`` as Unicode text: lone surrogates, which are bytes of no encoding, as ``\udc80``; ``\`` as ``\\``.

    Examples:
        >>> escaped("caf\udce9.png")
        'caf\\udce9.png'
    """
    return name.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode("utf-8")


def unescaped(text: str) -> str:
    r"""The name that `escaped` made ``text`` of.

    Examples:
        >>> unescaped(escaped("a\\b\udcff")) == "a\\b\udcff"
        True
    """
    return _ESCAPE.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), text)


class SampleWriter:
    """Writes the file of samples, whole or not at all: a context manager, abandoned if an exception leaves it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._temporary: Path | None = None
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        self._tables: list[Any] = []
        self._rows = 0

    def __enter__(self) -> SampleWriter:
        self._temporary = self._stack.enter_context(replacing(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:  # an error of the last rows, such as a full disk, must keep the file from its name too
            try:
                self._flush()
                self._writer.close()
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """Let go of the file; closing it properly would write to a disk that may be full."""
        if self._writer is not None:
            self._writer.is_open = False
            self._writer = None

    def add(self, batch: Batch, variant: str, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Add the rows of one variant for a batch.

        Args:
            batch: The samples.
            variant: Its name.
            columns: (n,) each: numbers or truths, masked where missing, or words (of dtype object, None where
                missing); the same names for every batch and variant.

        Raises:
            MeasurementError: If two columns have one name, or there are others than before.
            OutputError: If the file cannot be written.
        """
        import pyarrow as pa

        n = len(batch.ids)
        arrays = {
            "sample": pa.array([escaped(identity) for identity in batch.ids], pa.string()),
            "sha256": pa.array(batch.sha256s, pa.string()),
            "label": pa.array(batch.labels, pa.int64()),
            "variant": pa.array([escaped(variant)] * n, pa.string()),
        }
        for name, values in columns.items():
            if escaped(name) in arrays:
                raise MeasurementError(
                    f"two columns of the file of samples are named {name!r}",
                    hint="rename the output, the column of --slices or of the truths, or the figure of the metric",
                )
            arrays[escaped(name)] = _array(values)
        if self._schema is None:
            fields = [pa.field(name, array.type) for name, array in arrays.items()]
            self._schema = pa.schema(fields, metadata={_KEY: SAMPLES_SCHEMA.encode()})
        elif list(arrays) != self._schema.names:
            raise MeasurementError(
                f"{variant} has other columns for the file of samples than the variants before",
                got=", ".join(arrays), expected=", ".join(self._schema.names),
            )  # fmt: skip
        table = pa.Table.from_arrays(
            [array.cast(field.type) for array, field in zip(arrays.values(), self._schema, strict=True)],
            schema=self._schema,
        )
        self._tables.append(table)
        self._rows += n
        if self._rows >= _ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            empty = pa.schema([pa.field("sample", pa.string())], metadata={_KEY: SAMPLES_SCHEMA.encode()})
            schema = self._schema or empty
            self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables))
        self._tables, self._rows = [], 0


def _array(values: NDArray[np.generic]) -> Any:
    import pyarrow as pa

    if values.dtype.kind in "OU":
        return pa.array([None if value is None else escaped(str(value)) for value in values.tolist()], pa.string())
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(np.asarray(values.data), mask=np.ma.getmaskarray(values))
    return pa.array(values)


def read_samples(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a file of samples; names are as they were.

    Args:
        path: The file.
        columns: Those to read; None for all.

    Raises:
        DataError: If it is missing, damaged or no file of samples, or lacks a column.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        metadata = file.schema_arrow.metadata or {}
        known = {unescaped(name): name for name in file.schema_arrow.names}
    except FileNotFoundError:
        raise DataError(f"file of samples {path} does not exist", hint="run quantlab compare first") from None
    except (OSError, pa.ArrowException) as cause:
        raise DataError(f"file of samples {path} cannot be read", got=str(cause), hint="run compare again") from cause
    if metadata.get(_KEY, b"").decode("utf-8", "replace") != SAMPLES_SCHEMA:
        raise DataError(
            f"{path} is no file of samples",
            expected=f"a Parquet file of the schema {SAMPLES_SCHEMA}, as quantlab compare writes",
        )
    missing = [name for name in columns or () if name not in known]
    if missing:
        raise DataError(f"file of samples {path} lacks the column {missing[0]!r}", expected=", ".join(known))
    try:
        table = file.read(columns=None if columns is None else [known[name] for name in columns])
    except (OSError, pa.ArrowException) as cause:
        raise DataError(f"file of samples {path} is damaged", got=str(cause), hint="run compare again") from cause
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.schema.names, table.columns, strict=True):
        # Names that are not as they were need Python's own strings, which may hold what Arrow's may not.
        if pa.types.is_string(column.type) and pc.any(pc.match_substring(column, "\\")).as_py():
            values = [None if value is None else unescaped(value) for value in column.to_pylist()]
            frame[name] = pd.Series(values, dtype=object)
    return frame.rename(columns={stored: name for name, stored in known.items()})
