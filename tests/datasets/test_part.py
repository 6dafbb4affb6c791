"""A part of a data set: some of its samples, found out about once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantlab.datasets import InputSpec, Preprocess, open_dataset
from quantlab.datasets.dataset import SourceDataset
from quantlab.errors import DataError

SPEC = InputSpec("x", (4,), "float32")


def open_arrays(folder: Path, n: int = 6) -> SourceDataset:
    np.savez(folder / "data.npz", x=np.arange(4 * n, dtype=np.float32).reshape(n, 4))
    dataset = open_dataset(str(folder / "data.npz"), [SPEC], Preprocess())
    assert isinstance(dataset, SourceDataset)
    return dataset


def test_samples_in_the_order_of_the_whole(tmp_path: Path) -> None:
    whole = open_arrays(tmp_path)
    ids = [entry.id for entry in whole.manifest.entries]
    part = whole.part([ids[4], ids[1], "unknown"])
    assert len(part) == 2
    assert [sample.id for sample in part] == [ids[1], ids[4]]
    assert [sample.inputs["x"][0] for sample in part] == [4.0, 16.0]
    assert part.manifest.entries == (whole.manifest.entries[1], whole.manifest.entries[4])


def test_parts_together_are_the_whole(tmp_path: Path) -> None:
    whole = open_arrays(tmp_path)
    ids = [entry.id for entry in whole.manifest.entries]
    parts = [whole.part(ids[::2]), whole.part(ids[1::2])]
    assert sorted(sample.sha256 for part in parts for sample in part) == sorted(s.sha256 for s in whole)


def test_no_such_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample of"):
        open_arrays(tmp_path).part(["unknown"])
