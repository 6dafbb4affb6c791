"""A data set made by the user's own code: ``package.module:factory``."""

from __future__ import annotations

from collections.abc import Sequence

from quantlab.datasets.inputs import InputSpec
from quantlab.datasets.items import Items, as_indexable
from quantlab.datasets.protocol import Dataset
from quantlab.datasets.user_code import contained, import_function
from quantlab.errors import DataError


def open_factory(spec: str, inputs: Sequence[InputSpec]) -> Dataset | Items:
    """Import the module and call the factory without arguments.

    The result may be a `Dataset`, or a sequence of dicts of arrays by input name, of ``(array or Pillow image, label)``
    pairs, or of images. A one-shot generator is refused: calibration and evaluation read the data several times.

    Raises:
        DataError: If the module or factory does not exist, raises, or returns something else.
    """
    factory = import_function(spec, "data", DataError, "a file, a folder, or an importable package.module:factory")
    try:
        with contained():
            result = factory()
    except Exception as cause:  # as above
        raise DataError(
            f"the data factory {spec!r} failed",
            got=f"{type(cause).__name__}: {cause}",
            expected="a function that needs no arguments and returns samples",
            hint="see where it failed with --debug",
        ) from cause
    return result if isinstance(result, Dataset) else Items(as_indexable(result, spec), "factory", spec, inputs)
