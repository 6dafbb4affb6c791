"""Ready-made tensors against what the model's inputs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.inputs import InputSpec, format_shape
from quantlab.errors import DataError


def fit_tensors(
    arrays: Mapping[str, NDArray[np.generic]], inputs: Sequence[InputSpec], sample: str
) -> dict[str, NDArray[np.generic]]:
    """Check the arrays of one sample and bring them to the inputs' dtypes.

    Floats may be cast to another float type, integers to another integer type that holds their values; nothing else
    is converted.

    Raises:
        DataError: Naming sample and input, if an array is missing, of another shape or kind, or not finite.
    """
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise DataError(
            f"sample {sample!r} has no array for input {missing[0]!r}",
            got=", ".join(sorted(arrays)) or "nothing",
            expected=", ".join(spec.name for spec in inputs),
        )
    return {spec.name: _fit(arrays[spec.name], spec, sample) for spec in inputs}


def _fit(array: NDArray[np.generic], spec: InputSpec, sample: str) -> NDArray[np.generic]:
    got = f"{format_shape(array.shape)} {array.dtype}"
    where = f"sample {sample!r} does not fit input {spec.name!r}"
    if not spec.accepts(array.shape):
        hint = None
        if spec.accepts(array.shape[1:]) and array.shape[0] == 1:
            hint = "leave the batch axis out of each sample"
        elif array.ndim == 3 and spec.accepts((array.shape[2], *array.shape[:2])):
            hint = "transpose the data to channels first"
        elif array.ndim == 3 and spec.accepts((*array.shape[1:], array.shape[0])):
            hint = "transpose the data to channels last"
        raise DataError(where, got=got, expected=str(spec), hint=hint)
    dtype = spec.numpy_dtype
    if array.dtype == dtype:
        result = np.ascontiguousarray(array)
    elif _is_float(array.dtype) and _is_float(dtype):
        with np.errstate(over="ignore"):
            result = np.ascontiguousarray(array.astype(dtype))
    elif array.dtype.kind in "iu" and dtype.kind in "iu":
        result = np.ascontiguousarray(array.astype(dtype))
        if not np.array_equal(result, array):
            raise DataError(f"sample {sample!r} has values beyond input {spec.name!r}", got=got, expected=str(spec))
    else:
        hint = f"convert the array to {spec.dtype}, preprocessed as the model was trained"
        raise DataError(where, got=got, expected=str(spec), hint=hint)
    if _is_float(dtype):
        bad = int(result.size - np.isfinite(result).sum())
        if bad:
            raise DataError(
                f"sample {sample!r} has values that are not finite in input {spec.name!r}",
                got=f"{bad} of {result.size} values NaN or infinite, as {spec.dtype}",
                expected="finite values",
                hint="remove or repair the sample",
            )
    return result


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    """Floats of NumPy, and bfloat16 and its kin, which NumPy files under void."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))
