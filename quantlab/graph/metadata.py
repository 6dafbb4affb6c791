"""Metadata that travels inside a model file."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets.preprocess import Preprocess
from quantlab.datasets.resolution import METADATA_KEY
from quantlab.errors import CalibrationError, ConfigError


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
    if text is None or any(entry.key == METADATA_KEY and entry.value == text for entry in proto.metadata_props):
        return proto
    result = ModelProto()
    result.CopyFrom(proto)
    kept = [entry for entry in result.metadata_props if entry.key != METADATA_KEY]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    result.metadata_props.add(key=METADATA_KEY, value=text)
    return result
