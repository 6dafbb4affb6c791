"""Which preprocessing applies: the flag's, the recipe's, the model's own, or an assumed one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantlab.datasets.inputs import InputSpec
from quantlab.datasets.preprocess import Preprocess
from quantlab.datasets.presets import PRESETS
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import near_match, read_toml
from quantlab.errors import ConfigError

METADATA_KEY = "quantlab.preprocess"
"""Key of an ONNX model's ``metadata_props`` that holds `Preprocess.to_json`."""

READY_TENSORS = "ready tensors"
ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class ResolvedPreprocess:
    """A preprocessing and where it came from.

    Attributes:
        preprocess: The preprocessing, or None where data is fed as it is.
        origin: ``flag ...``, ``recipe``, ``model metadata``, ``assumed`` or ``ready tensors``.
        degradation: `DegradationCode.ASSUMED_PREPROCESS` if it was assumed; a data set counts it only if it applied it.
    """

    preprocess: Preprocess | None
    origin: str
    degradation: Degradation | None = None

    def describe(self) -> str:
        """One line: the preprocessing and its origin."""
        text = self.preprocess.describe() if self.preprocess else "none"
        return f"{text} ({self.origin})"


def _preset(name: str, where: str) -> Preprocess:
    if name in PRESETS:
        return PRESETS[name]
    near = near_match(name, PRESETS)
    raise ConfigError(
        f"{where} is not known",
        got=repr(name),
        expected="one of " + ", ".join(PRESETS) + ", or a TOML file",
        hint=f"did you mean {near!r}?" if near else None,
    )


def preprocess_from_table(table: Mapping[str, Any], where: str) -> Preprocess:
    """Build from a TOML table; the key ``preset`` names a preset that the other keys change.

    Raises:
        ConfigError: If a key, value or preset is wrong.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} has a wrong value", got=repr(table), expected="a table")
    given = {str(key).replace("-", "_"): value for key, value in table.items()}
    name = given.pop("preset", None)
    if name is None:
        return Preprocess.from_plain(given, where)
    base = _preset(str(name), f"{where}.preset").to_plain()
    resize = given.get("resize", base["resize"])
    if resize != base["resize"]:  # the preset's sizes belong to its own way of resizing
        base = {key: value for key, value in base.items() if key not in ("size", "shortest")}
    return Preprocess.from_plain(base | given, where)


def load_preprocess(text: str) -> Preprocess:
    """Preprocessing from what ``--preprocess`` was given: a preset's name, or a TOML file.

    The file has the fields of `Preprocess` at its top level or in a table ``[preprocess]``.

    Raises:
        ConfigError: If it is neither, with the nearest preset, or the file is wrong.
    """
    path = Path(text)
    if text not in PRESETS and (path.suffix == ".toml" or path.is_file()):
        table = read_toml(path, "preprocessing file")
        inner = table.get("preprocess")
        return preprocess_from_table(inner if isinstance(inner, dict) else table, f"preprocessing file {path}")
    return _preset(text, "the preprocessing")


def preprocess_from_metadata(metadata: Mapping[str, str]) -> Preprocess | None:
    """Preprocessing that a model carries under ``quantlab.preprocess``, or None.

    Raises:
        ConfigError: If the key is there but holds no valid preprocessing.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    where = f"the model's metadata {METADATA_KEY!r}"
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise ConfigError(f"{where} is not JSON", got=str(cause), hint="override it with --preprocess") from cause
    return Preprocess.from_plain(table, where)


def image_input(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """The one input that takes images: the only input, if it has three axes; else None."""
    return inputs[0] if len(inputs) == 1 and inputs[0].is_image else None


def resolve_preprocess(
    flag: str | None,
    recipe: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
    inputs: Sequence[InputSpec],
) -> ResolvedPreprocess:
    """Decide on the preprocessing: flag before recipe before the model's metadata before an assumption.

    What the source leaves open (size, colour, layout) is filled in from the model's image input. Whether the result
    fits the input is checked by `open_dataset`, for ready-made tensors need no preprocessing at all.

    Args:
        flag: Value of ``--preprocess``: a preset's name or a TOML file.
        recipe: Table ``[preprocess]`` of the recipe; its key ``preset`` names a preset to start from.
        metadata: The model's ``metadata_props``.
        inputs: The model's inputs.

    Raises:
        ConfigError: If the source that applies is wrong.
    """
    if flag is not None:
        preprocess, origin = load_preprocess(flag), f"flag --preprocess {flag}"
    elif recipe:
        preprocess, origin = preprocess_from_table(recipe, "preprocess"), "recipe"
    else:
        own = preprocess_from_metadata(metadata)
        if own is None:
            return _assumed(inputs)
        preprocess, origin = own, "model metadata"
    spec = image_input(inputs)
    return ResolvedPreprocess(preprocess.fitted(spec) if spec else preprocess, origin)


def _assumed(inputs: Sequence[InputSpec]) -> ResolvedPreprocess:
    """Pixels in 0..1 (0..255 for an integer input), stretched to the model's size."""
    spec = image_input(inputs)
    if spec is None:
        return ResolvedPreprocess(None, READY_TENSORS)
    integer = spec.numpy_dtype.kind in "iu"
    preprocess = PRESETS["raw" if integer else "unit"].fitted(spec)
    message = (
        "no preprocessing was given or found in the model; assumed for input "
        f"{spec.name!r}: {preprocess.describe()}; state the real one with --preprocess"
    )
    return ResolvedPreprocess(
        preprocess, ASSUMED, Degradation(DegradationCode.ASSUMED_PREPROCESS, message, 1, (spec.name,))
    )


def as_ready(resolved: ResolvedPreprocess) -> ResolvedPreprocess:
    """What applies to data that is fed as it is, whatever was resolved."""
    return replace(resolved, preprocess=None, origin=READY_TENSORS, degradation=None)
