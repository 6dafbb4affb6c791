"""A data set made by the user's own code: ``package.module:factory``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from quantlab.datasets.inputs import InputSpec
from quantlab.datasets.items import Items, as_indexable
from quantlab.datasets.protocol import Dataset
from quantlab.documents import near_match
from quantlab.errors import DataError

FACTORY = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
"""Form of a factory's name."""


def open_factory(spec: str, inputs: Sequence[InputSpec]) -> Dataset | Items:
    """Import the module and call the factory without arguments.

    The result may be a `Dataset`, or a sequence of dicts of arrays by input name, of ``(array or Pillow image, label)``
    pairs, or of images. A one-shot generator is refused: calibration and evaluation read the data several times.

    Raises:
        DataError: If the module or factory does not exist, raises, or returns something else.
    """
    module_name, attribute = spec.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{module_name}.".startswith(f"{cause.name}."):
            raise DataError(f"importing {module_name!r} for the data failed", got=str(cause)) from cause
        local = Path(module_name.split(".")[0])
        here = local.is_dir() or local.with_suffix(".py").is_file()
        raise DataError(
            f"there is no Python module {module_name!r} for the data {spec!r}",
            got=str(cause),
            expected="a file, a folder, or an importable package.module:factory",
            hint="it lies in this folder: set PYTHONPATH=." if here else None,
        ) from cause
    except Exception as cause:  # the user's module may raise anything
        raise DataError(
            f"importing {module_name!r} for the data failed", got=f"{type(cause).__name__}: {cause}"
        ) from cause
    factory = getattr(module, attribute, None)
    if not callable(factory):
        near = near_match(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise DataError(
            f"module {module_name!r} has no function {attribute!r}",
            hint=f"did you mean {near!r}?" if near else None,
        )
    try:
        result = factory()
    except Exception as cause:  # as above
        raise DataError(
            f"the data factory {spec!r} failed",
            got=f"{type(cause).__name__}: {cause}",
            expected="a function that needs no arguments and returns samples",
            hint="see where it failed with --debug",
        ) from cause
    return result if isinstance(result, Dataset) else Items(as_indexable(result, spec), "factory", spec, inputs)
