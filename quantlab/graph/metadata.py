"""Metadata that travels inside a model file."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import ModelProto

from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets.preprocess import Preprocess
from quantlab.datasets.resolution import METADATA_KEY
from quantlab.errors import CalibrationError, ConfigError

RECOVERY_KEY = "quantlab.recovery"
"""Entry that names the steps by which a model was recovered, separated by commas."""

_KEEP_TENSORS = frozenset({"ranges", "round", "bias"})


def stated_preprocess(table: CalibrationTable) -> str | None:
    """The preprocessing that a table was calibrated with, as JSON; None for ready tensors and where it was assumed.

    Raises:
        CalibrationError: If the table's description of it is damaged.
    """
    plain = table.provenance.preprocess
    if plain is None:
        return None
    try:
        return Preprocess.from_plain(plain, "the calibration table's preprocessing").to_json()
    except ConfigError as cause:
        raise CalibrationError(cause.what, got=cause.got, expected=cause.expected) from cause


def own_preprocess(metadata: Mapping[str, str]) -> str | None:
    """The preprocessing that a model states, as JSON; None if it states none."""
    return metadata.get(METADATA_KEY)


def with_preprocess(proto: ModelProto, table: CalibrationTable | None) -> ModelProto:
    """The model, carrying the preprocessing of its calibration, so that evaluation uses the same; a copy if changed."""
    text = stated_preprocess(table) if table is not None else None
    return proto if text is None else _with_entry(proto, METADATA_KEY, text)


def with_recovery(proto: ModelProto, steps: tuple[str, ...]) -> ModelProto:
    """The model, saying by which steps it was recovered; a copy if changed."""
    return _with_entry(proto, RECOVERY_KEY, ",".join(steps))


def stated_recovery(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The steps by which a model says that it was recovered; none if it says nothing."""
    return tuple(step for step in metadata.get(RECOVERY_KEY, "").split(",") if step)


def moves_tensors(steps: Collection[str]) -> bool:
    """Whether tensors inside a model hold other values after these steps of recovery than before."""
    return not _KEEP_TENSORS.issuperset(steps)


def _with_entry(proto: ModelProto, key: str, value: str) -> ModelProto:
    if any(entry.key == key and entry.value == value for entry in proto.metadata_props):
        return proto
    result = ModelProto()
    result.CopyFrom(proto)
    kept = [entry for entry in result.metadata_props if entry.key != key]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    result.metadata_props.add(key=key, value=value)
    return result
