from __future__ import annotations

import numpy as np
import pytest

from quantlab.datasets import InputSpec, load_preprocess, open_dataset
from quantlab.datasets.tensors import fit_tensors
from quantlab.errors import DataError

CHW, HWC = InputSpec("x", (3, 8, 9)), InputSpec("x", (8, 9, 3))


@pytest.mark.parametrize(
    ("shape", "spec", "hint"),
    [
        ((1, 3, 8, 9), CHW, "leave the batch axis out"),
        ((8, 9, 3), CHW, "channels first"),
        ((3, 8, 9), HWC, "channels last"),
        ((3, 8), CHW, ""),
    ],
    ids=str,
)
def test_wrong_shapes_name_sample_input_got_and_expected(shape: tuple[int, ...], spec: InputSpec, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        fit_tensors({"x": np.zeros(shape, np.float32)}, [spec], "s1")
    assert "sample 's1' does not fit input 'x'" in caught.value.what
    assert str(shape) in str(caught.value.got)
    assert str(spec.shape) in str(caught.value.expected)
    assert hint in (caught.value.hint or "")


def test_missing_input() -> None:
    with pytest.raises(DataError, match="no array for input 'x'"):
        fit_tensors({"y": np.zeros(3)}, [CHW], "s1")


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_floats_are_cast_to_the_inputs_float(dtype: str) -> None:
    spec = InputSpec("x", (2,), dtype)
    got = fit_tensors({"x": np.array([0.5, -2.0], np.float32)}, [spec], "s1")["x"]
    assert got.dtype.name == dtype
    np.testing.assert_array_equal(got.astype(np.float32), [0.5, -2.0])
    with pytest.raises(DataError, match="not finite"):
        fit_tensors({"x": np.array([np.inf, 0.0], np.float32)}, [spec], "s1")


def test_integers_are_cast_where_they_fit() -> None:
    spec = InputSpec("x", (2,), "int64")
    assert fit_tensors({"x": np.array([1, 2], np.int32)}, [spec], "s1")["x"].dtype == np.int64
    with pytest.raises(DataError, match="does not fit"):
        fit_tensors({"x": np.array([True, False])}, [spec], "s1")


def test_results_are_contiguous() -> None:
    array = np.zeros((9, 8, 3), np.float32).transpose(2, 1, 0)
    assert fit_tensors({"x": array}, [CHW], "s1")["x"].flags["C_CONTIGUOUS"]


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(DataError, match="dtype that no data can be made for"):
        open_dataset("random:1", [InputSpec("x", (2,), "string7")], load_preprocess("unit")).statistics()


def test_random_data_of_a_bfloat16_model() -> None:
    (got,) = open_dataset("random:2", [InputSpec("x", (2,), "bfloat16")], load_preprocess("unit")).statistics()
    assert got.dtype == "bfloat16"
