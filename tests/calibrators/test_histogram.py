"""Counting: exact, in any order, in any split, for every float32 there is."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from calibrator_data import ODD, histogram_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantlab.calibrators import Histogram, load_histograms, save_histograms
from quantlab.calibrators.counting import COARSE, OCTAVES, SIDE
from quantlab.calibrators.histogram import HISTOGRAM_FORMAT
from quantlab.errors import CalibrationError, OutputError

Floats = NDArray[np.float32]
ANY = hnp.arrays(np.float32, st.integers(0, 120), elements=st.floats(width=32))


def same(a: Histogram, b: Histogram) -> bool:
    equal = bool((a.counts == b.counts).all() and (a.special == b.special).all())
    return equal and (a.minimum, a.maximum, a.octave) == (b.minimum, b.maximum, b.octave)


@given(values=ANY)
def test_buckets_are_the_upper_bits(values: Floats) -> None:
    """Whatever came first, the six octaves that end with the largest magnitude have 11 mantissa bits, the others 8."""
    histogram = histogram_of(values)
    finite = values[np.isfinite(values)]
    bits = np.abs(finite).view(np.uint32).astype(np.int64)
    octave = max(int(bits.max(initial=0) >> 23) - OCTAVES + 1, 0)
    upper = np.where(bits >> 23 >= octave, bits >> 12 << 12, bits >> 15 << 15)
    expected = Counter((bool(v < 0) and bool(u), int(u)) for v, u in zip(finite, upper, strict=True))
    got: Counter[tuple[bool, int]] = Counter()
    for bucket in np.flatnonzero(histogram.counts).tolist():
        side, number = divmod(bucket, SIDE)
        beyond = number - octave * COARSE
        start = number << 15 if beyond < 0 else (octave << 23) + (beyond << 12)
        got[bool(side), start] += int(histogram.counts[bucket])
    assert histogram.octave == octave
    assert got == expected
    assert histogram.total == finite.size
    assert histogram.special.tolist() == [np.isnan(values).sum(), (values == -np.inf).sum(), (values == np.inf).sum()]
    assert histogram.non_finite == values.size - finite.size
    assert histogram.minimum == (float(finite.min()) if finite.size else math.inf)
    assert histogram.maximum == (float(finite.max()) if finite.size else -math.inf)


@given(values=ANY, data=st.data())
def test_any_split_and_order_gives_the_whole(values: Floats, data: st.DataObject) -> None:
    whole = histogram_of(values)
    order = data.draw(st.permutations(range(values.size)))
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), max_size=5)))
    parts = np.split(values[np.array(order, int)], cuts)
    streamed, merged = Histogram(), Histogram()
    for part in parts:
        streamed.add(part)
    for part in data.draw(st.permutations(parts)):
        other = histogram_of(part)
        before = other.copy()
        merged.merge(other)
        assert same(other, before)
    assert same(streamed, whole)
    assert same(merged, whole)


@pytest.mark.parametrize("descending", [False, True])
def test_growing_magnitudes_over_all_octaves(descending: bool) -> None:
    """Each block has larger magnitudes than the last, by one octave or by many: fine octaves fold into coarse ones."""
    rng = np.random.default_rng(9)
    blocks = [rng.standard_normal(300) * 2.0**e for e in (-140, -126, -125, -60, -59, -57, -50, 0, 1, 2, 3, 9, 120)]
    parts = [block.astype(np.float32) for block in blocks]
    streamed = Histogram()
    for part in parts[::-1] if descending else parts:
        streamed.add(part)
    assert same(streamed, histogram_of(np.concatenate(parts)))


@pytest.mark.parametrize("size", [(1 << 17) - 1, 1 << 17, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, (1 << 19) + 3])
def test_large_blocks_are_counted_to_the_last_value(size: int) -> None:
    """Whatever blocks the inner loop works in, the last values are in: extremes at both ends of the array."""
    values = np.ones(size, np.float32)
    values[0], values[-1] = -5.0, 9.0
    once, many = histogram_of(values), Histogram()
    for part in np.array_split(values, 7):
        many.add(part)
    assert once.total == size
    assert (once.minimum, once.maximum) == (-5.0, 9.0)
    assert same(once, many)


@pytest.mark.parametrize("position", [0, 300_000])
def test_a_nan_hides_no_extreme(position: int) -> None:
    values = np.linspace(-1, 1, 400_000, dtype=np.float32)
    values[position] = np.nan
    values[1] = np.inf
    values[2] = -np.inf
    finite = values[np.isfinite(values)]
    histogram = histogram_of(values)
    assert histogram.non_finite == 3
    assert (histogram.minimum, histogram.maximum) == (float(finite.min()), float(finite.max()))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0,), (5, 0)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    histogram = Histogram()
    histogram.add(np.full(shape, 2.0, np.float32))
    assert histogram.total == math.prod(shape)


def test_strided_views_are_counted_as_they_read() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert same(histogram_of(values.T[::2]), histogram_of(values[:, ::2].copy()))


def test_zeros_of_both_signs_are_one_point() -> None:
    distribution = histogram_of([0.0, -0.0, 1.0, -1.0]).distribution()
    assert distribution.zero_fraction == 0.5
    assert len(distribution.low) == 3


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf, math.nan]])
def test_nothing_finite_has_no_distribution(values: list[float]) -> None:
    with pytest.raises(CalibrationError, match="no finite value"):
        histogram_of(values).distribution()


@pytest.mark.parametrize("name", ODD)
def test_intervals_hold_every_value_of_odd_tensors(name: str) -> None:
    values = ODD[name].astype(np.float64)
    distribution = histogram_of(values).distribution()
    assert distribution.total == values.size
    assert (distribution.minimum, distribution.maximum) == (values.min(), values.max())
    assert (distribution.low <= distribution.high).all()
    assert (np.diff(distribution.low) > 0).all()
    assert np.isfinite(distribution.high).all()
    flushed = np.where(np.abs(values) < 2.0**-134, 0.0, values)  # subnormals of the zero bucket count as zeros
    for value in flushed:
        assert ((distribution.low <= value) & (value <= distribution.high)).any()
    sign = np.where(flushed < 0, -1, 1)
    starts = np.where(distribution.low < 0, -distribution.high, distribution.low)
    inside = (flushed * sign)[:, None] >= starts[None, :]
    nearest = np.where(inside & ((sign < 0)[:, None] == (distribution.low < 0)[None, :]), starts[None, :], -1)
    counted = np.bincount(nearest.argmax(axis=1), minlength=len(starts))
    np.testing.assert_array_equal(counted, distribution.mass)


class TestFiles:
    @given(
        tensors=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), ANY, max_size=4
        )
    )
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Floats]) -> None:
        path = tmp_path_factory.mktemp("histograms") / "histograms.npz"
        histograms = {name: histogram_of(values) for name, values in tensors.items()}
        save_histograms(path, histograms)
        loaded = load_histograms(path)
        assert list(loaded) == list(histograms)
        assert all(same(loaded[name], histograms[name]) for name in histograms)

    def test_loaded_histograms_go_on_counting(self, tmp_path: Path) -> None:
        save_histograms(tmp_path / "h.npz", {"x": histogram_of([1.0, 2.0])})
        (loaded,) = load_histograms(tmp_path / "h.npz").values()
        loaded.add(np.float32([3.0]))
        assert same(loaded, histogram_of([1.0, 2.0, 3.0]))

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        path = tmp_path / "h.npz"
        save_histograms(path, {"x": histogram_of(np.linspace(-1, 1, 500))})
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CalibrationError, match=r"h\.npz"):
            load_histograms(path)

    @pytest.mark.parametrize("seed", range(20))
    def test_flipped_bytes(self, tmp_path: Path, seed: int) -> None:
        """A checksum refuses it, or the byte was one that does not matter: never another kind of error."""
        path = tmp_path / "h.npz"
        original = histogram_of(np.linspace(-1, 1, 500))
        save_histograms(path, {"x": original})
        data = bytearray(path.read_bytes())
        rng = np.random.default_rng(seed)
        for position in rng.integers(0, len(data), 3):
            data[position] ^= 0xFF
        path.write_bytes(data)
        try:
            loaded = load_histograms(path)
        except CalibrationError:
            return
        assert same(loaded["x"], original)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="none"):
            load_histograms(tmp_path / "none.npz")

    @pytest.mark.parametrize(
        "change",
        [
            {"format": np.array(99)},
            {"sizes": np.array([3, 2])},
            {"sizes": np.array([-1, 4])},
            {"extremes": np.array([[0.0, 1.0]])},
            {"extremes": np.array([0.0, 1.0])},
            {"names": np.array(["x"])},
            {"names": np.array(["x", "x"])},
            {"counts": np.array([1, -1, 1])},
            {"counts": np.array([[1, 1, 1]])},
            {"counts": np.array(["a", "b", "c"])},
            {"buckets": np.array([1, 2, 3])},
            {"buckets": np.array([1, 2 * SIDE, 3], np.uint32)},
            {"octaves": np.array([1, 255])},
            {"octaves": np.array([1])},
            {"special": np.zeros((2, 2), np.int64)},
            {"special": np.full((2, 3), -1)},
            {"format": None},
            {"counts": None},
            {"names": np.array([{}], object)},
        ],
    )
    def test_damaged(self, tmp_path: Path, change: dict[str, object]) -> None:
        path = tmp_path / "h.npz"
        save_histograms(path, {"x": histogram_of([1.0]), "y": histogram_of([1.0, 2.0])})
        with np.load(path) as archive:
            arrays = dict(archive)
        assert arrays["sizes"].tolist() == [1, 2]
        arrays = {key: value for key, value in (arrays | change).items() if value is not None}
        np.savez(path, **arrays)
        with pytest.raises(CalibrationError, match=r"h\.npz"):
            load_histograms(path)

    def test_another_format_names_both(self, tmp_path: Path) -> None:
        """Format 1 had buckets of 16 bits: read as format 2 it would be quietly wrong."""
        np.savez(tmp_path / "old.npz", format=np.array(1), names=np.array(["x"]))
        with pytest.raises(CalibrationError) as caught:
            load_histograms(tmp_path / "old.npz")
        assert (caught.value.got, caught.value.expected) == ("format 1", f"format {HISTOGRAM_FORMAT}")
        assert "calibrate again" in str(caught.value)

    def test_another_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "h.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(CalibrationError, match=r"h\.npz"):
            load_histograms(path)

    def test_unwritable(self, tmp_path: Path) -> None:
        (tmp_path / "h.npz").mkdir()
        with pytest.raises(OutputError):
            save_histograms(tmp_path / "h.npz", {})
