"""Stability on data whose behaviour is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibrator_data import Floats, histogram_of
from calibrator_data import table as empty_table

from quantlab.calibrators import (
    INT8_SYMMETRIC,
    SCHEMES,
    UINT8_AFFINE,
    CalibrationTable,
    measure_tensor,
    range_methods,
)
from quantlab.calibrators.stability import (
    N_GROUPS,
    N_SUBSETS,
    SUBSET_GROUPS,
    Group,
    Occupied,
    Packed,
    draw_subsets,
    measure_stability,
    quantile,
    total,
)
from quantlab.calibrators.stability_result import SizeStability, Stability, images_enough
from quantlab.errors import CalibrationError

IMAGES = 4
"""A group."""

Values = Callable[[np.random.Generator], Floats]


def images(draw: Values, seed: int = 1, n: int = N_GROUPS * IMAGES) -> list[Floats]:
    return [draw(np.random.default_rng((seed, i))).astype(np.float32) for i in range(n)]


def measured(method: str, scheme: str = INT8_SYMMETRIC.name, seed: int = 0, **tensors: list[Floats]) -> Stability:
    groups = [
        Group(
            IMAGES,
            {name: Packed.of(histogram_of(np.concatenate(each[g::N_GROUPS]))) for name, each in tensors.items()},
        )
        for g in range(N_GROUPS)
    ]
    return measure_stability(groups, whole_table(method, **tensors), SCHEMES[scheme], seed)


def whole_table(method: str, **tensors: list[Floats]) -> CalibrationTable:
    entries = [
        measure_tensor(name, histogram_of(np.concatenate(each)), range_methods(99.99))
        for name, each in sorted(tensors.items())
    ]
    made = dataclasses.replace(empty_table(*entries, method=method), n_samples=N_GROUPS * IMAGES)
    return dataclasses.replace(made, tensors=tuple(entries))


NORMAL = images(lambda rng: rng.standard_normal(2000))
HEAVY = images(lambda rng: rng.standard_t(2, 10_000))
UNIFORM = images(lambda rng: rng.uniform(-1, 1, 2000))


class TestKnownBehaviour:
    def test_heavy_tails_move_a_lot_under_minmax_and_little_under_percentile(self) -> None:
        minmax, percentile = measured("minmax", x=HEAVY), measured("percentile", x=HEAVY)
        for wide, tight in zip(minmax.sizes[:3], percentile.sizes[:3], strict=True):
            assert wide.movement_median > 2 * tight.movement_median
        assert minmax.sizes[0].movement_median > 0.5
        assert minmax.tensors[0].spread > percentile.tensors[0].spread

    def test_bounded_values_are_settled_with_one_group(self) -> None:
        for method in ("minmax", "percentile", "mse"):
            found = measured(method, x=UNIFORM)
            assert found.enough_images == IMAGES
            assert found.sizes[0].movement_p95 < 0.01

    def test_movement_falls_with_the_number_of_images(self) -> None:
        moved = [size.movement_median for size in measured("percentile", x=NORMAL).sizes]
        assert moved == sorted(moved, reverse=True)
        assert moved[0] > 2 * moved[-1]

    def test_one_odd_image_is_not_in_most_subsets(self) -> None:
        """A group in 16 holds the maximum, a hundred times the rest: half of the subsets of 8 groups lack it."""
        odd = [image.copy() for image in UNIFORM]
        odd[5][0] = 100.0
        found = measured("minmax", x=odd)
        assert found.enough_images is None
        assert found.sizes[0].movement_median == pytest.approx(0.99, abs=0.001)
        assert found.sizes[-1].movement_p95 == pytest.approx(0.99, abs=0.001)
        assert found.tensors[0].spread == pytest.approx(0.99, abs=0.001)
        # Without the outlier's range the other values are quantized a hundred times finer, with it clipped.
        assert found.sizes[0].loss_db_median < 10

    def test_losing_the_tail_costs_decibels(self) -> None:
        """One value in ten thousand images is not the point here: a sixteenth of them is ten times as large."""
        groups = [image * (10.0 if i % N_GROUPS == 3 else 1.0) for i, image in enumerate(NORMAL)]
        found = measured("mse", x=[g.astype(np.float32) for g in groups])
        assert found.sizes[0].loss_db_median > 3.0
        assert found.enough_images is None

    def test_the_worst_tensor_is_named(self) -> None:
        found = measured("percentile", calm=UNIFORM, wild=HEAVY)
        assert found.sizes[0].worst_tensor == "wild"
        assert [tensor.name for tensor in found.least_stable()] == ["wild", "calm"]

    def test_affine_ranges_move_at_both_ends(self) -> None:
        low = [np.concatenate([UNIFORM[i], [-3.0 if i % N_GROUPS == 0 else 1.0]]).astype(np.float32) for i in range(64)]
        found = measured("minmax", UINT8_AFFINE.name, x=low)
        assert found.tensors[0].low == -3.0
        assert found.tensors[0].spread == pytest.approx(2 / 3, abs=0.01)
        assert found.sizes[0].movement_median == pytest.approx(2 / 3, abs=0.01)

    def test_constant_tensors_are_counted_apart(self) -> None:
        found = measured("mse", x=NORMAL, c=[np.full(5, 2.5, np.float32)] * 64)
        assert (found.n_constant, [tensor.name for tensor in found.tensors]) == (1, ["x"])
        none = measured("mse", c=[np.full(5, 2.5, np.float32)] * 64)
        assert (none.sizes, none.enough_images) == ((), None)
        assert "no tensor" in none.conclusion

    def test_a_tensor_that_is_zero_in_most_images(self) -> None:
        rare = [np.zeros(100, np.float32) for _ in range(64)]
        rare[7] = NORMAL[7][:100]
        found = measured("mse", x=rare)
        assert found.sizes[0].movement_median == 1.0
        assert found.sizes[0].loss_db_median > 10
        assert found.enough_images is None

    def test_lossless_ranges_lose_nothing(self) -> None:
        found = measured("minmax", UINT8_AFFINE.name, x=[np.float32([0.0, 255.0])] * 64)
        assert (found.sizes[0].loss_db_p95, found.sizes[0].movement_p95) == (0.0, 0.0)

    def test_only_nan_in_some_images(self) -> None:
        some = [np.full(10, np.nan, np.float32) for _ in range(64)]
        for i in range(8):
            some[i] = UNIFORM[i]
        found = measured("minmax", x=some)
        assert math.isfinite(found.sizes[0].movement_p95)


def test_the_same_seed_gives_the_same_result() -> None:
    assert measured("mse", x=HEAVY) == measured("mse", x=HEAVY)
    assert measured("mse", seed=1, x=HEAVY) != measured("mse", x=HEAVY)


def test_whole_values_are_compared_with_a_subset_by_hand() -> None:
    """Min-max of single groups of uniform values: everything follows from the groups' own extremes."""
    found = measured("minmax", x=UNIFORM)
    amax = np.array([max(np.abs(image).max() for image in UNIFORM[g::N_GROUPS]) for g in range(N_GROUPS)])
    movements = sorted((amax.max() - amax) / amax.max())
    assert found.sizes[0].movement_median == pytest.approx(movements[N_GROUPS // 2 - 1], rel=1e-6)
    assert found.sizes[0].movement_p95 == pytest.approx(movements[15], rel=1e-6)
    assert found.tensors[0].movements[0] == pytest.approx(max(movements), rel=1e-6)
    assert found.tensors[0].spread == pytest.approx(np.ptp(amax) / amax.max(), rel=1e-6)


def test_groups_of_another_table_are_refused() -> None:
    groups = [Group(1, {"x": Packed.of(histogram_of(image))}) for image in NORMAL[:N_GROUPS]]
    with pytest.raises(CalibrationError, match="not those of the table"):
        measure_stability(groups, whole_table("mse", x=NORMAL), INT8_SYMMETRIC, 0)


def test_only_the_named_tensors() -> None:
    groups = [Group(1, {"x": Packed.of(histogram_of(image))}) for image in NORMAL[:N_GROUPS]]
    table = whole_table("mse", x=NORMAL[:N_GROUPS], y=HEAVY)
    found = measure_stability(groups, table, INT8_SYMMETRIC, 0, ["x", "weights"])
    assert [tensor.name for tensor in found.tensors] == ["x"]


class TestSubsets:
    @pytest.mark.parametrize("size", SUBSET_GROUPS)
    def test_sizes_and_numbers(self, size: int) -> None:
        subsets = draw_subsets(N_GROUPS, size, 3)
        assert len(subsets) == (N_GROUPS if size == 1 else N_SUBSETS)
        assert all(len(set(subset)) == size for subset in subsets)
        assert len(set(subsets)) == len(subsets)
        assert {group for subset in subsets for group in subset} == set(range(N_GROUPS))

    def test_pieces_of_one_order_share_nothing(self) -> None:
        subsets = draw_subsets(N_GROUPS, 8, 0)
        for first, second in zip(subsets[::2], subsets[1::2], strict=True):
            assert set(first) | set(second) == set(range(N_GROUPS))

    def test_the_seed_decides(self) -> None:
        assert draw_subsets(N_GROUPS, 4, 0) == draw_subsets(N_GROUPS, 4, 0) != draw_subsets(N_GROUPS, 4, 1)


class TestOccupied:
    @pytest.mark.parametrize(
        "values",
        [
            NORMAL[0],
            [0.0],
            [np.nan, np.inf],
            [],
            [-1e-40, 3e38, -3e38, 0.0],
            np.repeat(NORMAL[1], 300),
            np.zeros(70_000, np.float32),
        ],
        ids=["normal", "zero", "nothing finite", "empty", "wide", "repeated", "zeros"],
    )
    def test_packed_and_unpacked(self, values: Floats) -> None:
        whole = Occupied.of(histogram_of(values))
        found = Packed.of(histogram_of(values)).unpack()
        assert (found.buckets == whole.buckets).all() and (found.counts == whole.counts).all()
        assert (found.buckets.dtype, found.counts.dtype) == (np.uint32, np.int64)
        assert (found.special == whole.special).all()
        assert (found.octave, found.minimum, found.maximum) == (whole.octave, whole.minimum, whole.maximum)

    def test_packed_is_small(self) -> None:
        assert len(Packed.of(histogram_of(np.concatenate(NORMAL))).data) < 30_000

    @pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1e-9, 1.0, 1e9), (1e9, 1.0, 1e-9)])
    def test_total_is_the_histogram_of_all(self, scales: tuple[float, ...]) -> None:
        arrays = [(NORMAL[i] * scale).astype(np.float32) for i, scale in enumerate(scales)]
        arrays[1][:3] = np.nan, np.inf, -np.inf
        found = total([Occupied.of(histogram_of(array)) for array in arrays])
        whole = histogram_of(np.concatenate(arrays))
        assert (found.counts == whole.counts).all() and (found.special == whole.special).all()
        assert (found.octave, found.minimum, found.maximum) == (whole.octave, whole.minimum, whole.maximum)

    def test_the_parts_stay_as_they_are(self) -> None:
        parts = [Occupied.of(histogram_of(array)) for array in NORMAL[:2]]
        before = [part.counts.sum() for part in parts]
        total(parts).add(NORMAL[2])
        assert [part.counts.sum() for part in parts] == before


def size(images: int, loss_db: float, movement: float) -> SizeStability:
    return SizeStability(images, 1, 8, 0.0, loss_db, 0.0, movement, "x", loss_db)


class TestEnough:
    def test_the_least_from_which_on_all_are_settled(self) -> None:
        sizes = [size(1, 0.05, 0.01), size(2, 0.2, 0.01), size(4, 0.1, 0.05), size(8, -0.1, 0.0)]
        assert images_enough(sizes, 0.1, 0.05) == 4
        assert images_enough(sizes[:2], 0.1, 0.05) is None
        assert images_enough([], 0.1, 0.05) is None

    def test_both_must_hold(self) -> None:
        assert images_enough([size(1, 0.0, 0.06)], 0.1, 0.05) is None
        assert images_enough([size(1, 0.11, 0.0)], 0.1, 0.05) is None

    def test_words(self) -> None:
        found = measured("percentile", x=UNIFORM)
        assert found.conclusion.startswith("4 images would have been enough")
        moving = measured("minmax", x=HEAVY)
        assert "even 64 images are not shown to be enough" in moving.conclusion
        assert "between 32 and all of them" in moving.conclusion
        assert "0.1 dB" in moving.rule and "5 %" in moving.rule


def test_quantiles_are_observed_values() -> None:
    values = [4.0, 1.0, math.inf, 2.0]
    assert [quantile(values, share) for share in (0.01, 0.25, 0.5, 0.75, 0.95)] == [1.0, 1.0, 2.0, 4.0, math.inf]


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        found = measured("mse", x=HEAVY, y=NORMAL)
        path = tmp_path / "stability.json"
        path.write_text(found.to_json())
        assert Stability.load(path) == found

    def test_sizes_and_tensors_must_fit(self, tmp_path: Path) -> None:
        found = measured("mse", x=NORMAL)
        broken = dataclasses.replace(found, sizes=found.sizes[:2])
        path = tmp_path / "stability.json"
        path.write_text(broken.to_json())
        with pytest.raises(CalibrationError, match="does not fit the sizes"):
            Stability.load(path)

    def test_another_document(self, tmp_path: Path) -> None:
        path = tmp_path / "stability.json"
        path.write_text(whole_table("mse", x=NORMAL).to_json())
        with pytest.raises(CalibrationError, match="another schema"):
            Stability.load(path)
