"""Data sets of torchvision: ``torchvision:FashionMNIST?root=data&train=false``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from urllib.parse import parse_qsl

from quantlab.datasets.inputs import InputSpec
from quantlab.datasets.items import Items, as_indexable
from quantlab.documents import near_match
from quantlab.errors import BackendUnavailable, DataError

PREFIX = "torchvision:"


def open_torchvision(spec: str, inputs: Sequence[InputSpec]) -> Items:
    """Make a data set of ``torchvision.datasets``; the query gives its arguments (true, false, numbers or text).

    Its images go through quantlab's preprocessing; torchvision's transforms are not used.

    Raises:
        BackendUnavailable: If torchvision is not installed or does not work.
        DataError: If there is no such data set, or it cannot be made with these arguments.
    """
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    known = _torchvision_datasets()
    factory = getattr(known, name, None) if name.isidentifier() and not name.startswith("_") else None
    if factory is None:
        near = near_match(name, [str(item) for item in getattr(known, "__all__", ())])
        raise DataError(
            f"torchvision has no data set {name!r}",
            expected="torchvision:NAME?root=FOLDER&train=false",
            hint=f"did you mean {near!r}?" if near else None,
        )
    arguments = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}
    try:
        dataset = factory(**arguments)
    except Exception as cause:  # torchvision raises many kinds for missing files and wrong arguments
        raise DataError(
            f"torchvision cannot open {name}",
            got=str(cause) or type(cause).__name__,
            hint="add download=true, or point root at the folder that holds the data",
        ) from cause
    return Items(as_indexable(dataset, spec), "torchvision", spec, inputs)


def _torchvision_datasets() -> ModuleType:
    try:
        return importlib.import_module("torchvision.datasets")
    except ModuleNotFoundError as cause:
        raise BackendUnavailable(
            "data sets of torchvision need torchvision", got=str(cause), hint="pip install 'quantlab[torch]'"
        ) from cause
    except Exception as cause:  # installed but broken: a missing library, an unlike torch
        raise BackendUnavailable(
            "torchvision is installed but does not work",
            got=f"{type(cause).__name__}: {cause}",
            hint="pip install --force-reinstall 'quantlab[torch]'",
        ) from cause


def _value(text: str) -> bool | int | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return text
