"""``--shapes`` in its two forms, and what a network makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.engines.record import Profile
from quantlab.engines.tensorrt.profiles import (
    DEFAULT_LARGEST_BATCH,
    NetworkInput,
    fixed_batch,
    parse_shape_flags,
    settle_profiles,
)
from quantlab.errors import ConfigError

IMAGE = NetworkInput("image", (None, 3, 8, 8))
SIDE = NetworkInput("side", (None, 4))
DIMS = st.lists(st.integers(1, 99999), min_size=1, max_size=5).map(tuple)


def text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def image(*batches: int) -> Profile:
    low, best, high = batches
    return Profile((low, 3, 8, 8), (best, 3, 8, 8), (high, 3, 8, 8))


class TestParse:
    @given(st.text(min_size=1), DIMS, DIMS, DIMS)
    def test_ranges_are_read_from_the_right(
        self, name: str, low: tuple[int, ...], best: tuple[int, ...], high: tuple[int, ...]
    ) -> None:
        flags = parse_shape_flags([f"{name}:{text(low)}:{text(best)}:{text(high)}"])
        assert flags.profiles == ({name: Profile(low, best, high)},)
        assert flags.imposed == {}

    def test_one_shape_keeps_its_meaning(self) -> None:
        flags = parse_shape_flags(["a:1x3x4x4", "input:0:2x8"])
        assert flags.imposed == {"a": (1, 3, 4, 4), "input:0": (2, 8)}
        assert flags.profiles == ()

    def test_names_may_hold_colons(self) -> None:
        flags = parse_shape_flags(["input_1:0:1x2:3x2:4x2", "serving:x:1x5:1x5:1x5"])
        assert flags.profiles == (
            {"input_1:0": Profile((1, 2), (3, 2), (4, 2)), "serving:x": Profile((1, 5), (1, 5), (1, 5))},
        )

    def test_repeats_make_profiles(self) -> None:
        """An input that is named once has its range in all of them."""
        flags = parse_shape_flags(["a:1x2:1x2:1x2", "b:1x3:1x3:1x3", "a:8x2:8x2:8x2"])
        once = Profile((1, 3), (1, 3), (1, 3))
        assert flags.profiles == (
            {"a": Profile((1, 2), (1, 2), (1, 2)), "b": once},
            {"a": Profile((8, 2), (8, 2), (8, 2)), "b": once},
        )

    @pytest.mark.parametrize(
        "flag",
        ["a:1x3:2x3", "a:1x3:2x3:", ":1x2:1x2:1x2", "a:1x3:1x3:-1x3", "a:9999999999x1:1x1:1x1",
         "a:0x3", "a:1x3:2x3:4x3\n", "1x3:1x3:1x3"],
    )  # fmt: skip
    def test_malformed(self, flag: str) -> None:
        with pytest.raises(ConfigError, match="malformed") as caught:
            parse_shape_flags([flag])
        assert "NAME:MIN:OPT:MAX" in str(caught.value.expected)

    def test_two_shapes_for_one_input(self) -> None:
        with pytest.raises(ConfigError, match="'a' twice"):
            parse_shape_flags(["a:1x3", "a:2x3"])

    def test_both_forms_for_one_input(self) -> None:
        with pytest.raises(ConfigError, match="one shape and a range"):
            parse_shape_flags(["a:1x3", "a:1x3:2x3:4x3"])

    def test_unequal_numbers_of_ranges(self) -> None:
        two, three = ["a:1x3:2x3:4x3"] * 2, ["b:1x3:2x3:4x3"] * 3
        with pytest.raises(ConfigError, match="'a' 2 ranges, and another input 3"):
            parse_shape_flags([*two, *three])


class TestSettle:
    def test_asked_for_is_taken(self) -> None:
        asked = ({"image": image(1, 4, 16), "side": Profile((1, 4), (4, 4), (16, 4))},)
        assert settle_profiles([IMAGE, SIDE], asked) == (asked, ())

    def test_static_inputs_need_no_range(self) -> None:
        fixed = NetworkInput("table", (5, 2))
        (profile,), _ = settle_profiles([IMAGE, fixed], ({"image": image(1, 1, 2)},))
        assert profile["table"] == Profile((5, 2), (5, 2), (5, 2))

    def test_default_is_said(self) -> None:
        (profile,), (note,) = settle_profiles([IMAGE, SIDE, NetworkInput("table", (5, 2))], ())
        assert profile["image"] == image(1, 1, DEFAULT_LARGEST_BATCH)
        assert profile["side"] == Profile((1, 4), (1, 4), (DEFAULT_LARGEST_BATCH, 4))
        assert profile["table"] == Profile((5, 2), (5, 2), (5, 2))
        assert "1 to 32" in note
        assert "(image, side)" in note

    def test_nothing_dynamic_says_nothing(self) -> None:
        profiles, notes = settle_profiles([NetworkInput("x", (2, 3))], ())
        assert profiles == ({"x": Profile((2, 3), (2, 3), (2, 3))},)
        assert notes == ()

    @pytest.mark.parametrize(
        ("one", "said"),
        [
            (NetworkInput("x", (None, 3, None, None)), "--shapes x:1x3xHxW:8x3xHxW:32x3xHxW"),
            (NetworkInput("x", (2, None)), "--shapes x:2xC:2xC:2xC"),
            (NetworkInput("size", (2,), values=True), "--shapes size:NxN:NxN:NxN"),
        ],
    )
    def test_other_dynamic_dimensions_have_no_default(self, one: NetworkInput, said: str) -> None:
        with pytest.raises(ConfigError, match="no range was given") as caught:
            settle_profiles([IMAGE, one], ())
        assert caught.value.hint == f"add {said}"

    def test_unknown_input(self) -> None:
        with pytest.raises(ConfigError, match="no input 'imagge'") as caught:
            settle_profiles([IMAGE], ({"imagge": image(1, 1, 1)},))
        assert "did you mean 'image'" in str(caught.value)

    def test_dynamic_input_without_a_range(self) -> None:
        with pytest.raises(ConfigError, match="no range for input 'side', whose dimension 0 is dynamic") as caught:
            settle_profiles([IMAGE, SIDE], ({"image": image(1, 1, 2)},))
        assert "--shapes side:1x4:8x4:32x4" in str(caught.value)

    @pytest.mark.parametrize(
        ("profile", "label", "got"),
        [
            (Profile((1, 3, 8), (1, 3, 8, 8), (1, 3, 8, 8)), "MIN", "1x3x8"),
            (Profile((1, 3, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8)), "OPT", "1x4x8x8"),
            (Profile((1, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 9)), "MAX", "2x3x8x9"),
            (Profile((0, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)), "MIN", "0x3x8x8"),
        ],
    )
    def test_rank_and_static_sizes(self, profile: Profile, label: str, got: str) -> None:
        with pytest.raises(ConfigError, match=f"{label} of input 'image' does not fit") as caught:
            settle_profiles([IMAGE], ({"image": profile},))
        assert caught.value.got == got
        assert "?x3x8x8" in str(caught.value.expected)

    @pytest.mark.parametrize("batches", [(2, 1, 4), (1, 8, 4), (4, 4, 2)])
    def test_order(self, batches: tuple[int, int, int]) -> None:
        with pytest.raises(ConfigError, match="out of order in dimension 0") as caught:
            settle_profiles([IMAGE], ({"image": image(*batches)},))
        assert caught.value.got == ":".join(map(str, batches))

    def test_contents_are_bounded_by_number_and_may_be_zero(self) -> None:
        size = NetworkInput("size", (2,), values=True)
        asked = {"size": Profile((0, 16), (8, 32), (16, 64))}
        assert settle_profiles([size], (asked,))[0] == (asked,)
        with pytest.raises(ConfigError, match="wrong number of values"):
            settle_profiles([size], ({"size": Profile((1,), (2,), (3,))},))

    def test_a_single_value(self) -> None:
        scalar = NetworkInput("n", (), values=True)
        asked = {"n": Profile((1,), (2,), (3,))}
        assert settle_profiles([scalar], (asked,))[0] == (asked,)


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        (({"image": image(4, 4, 4), "side": Profile((4, 4), (4, 4), (4, 4))},), 4),
        (({"image": image(1, 4, 4)},), None),
        (({"image": image(1, 1, 1)}, {"image": image(8, 8, 8)}), None),
        (({"image": image(4, 4, 4), "side": Profile((1, 4), (1, 4), (1, 4))},), None),
    ],
)
def test_fixed_batch(profiles: tuple[dict[str, Profile], ...], expected: int | None) -> None:
    assert fixed_batch(profiles) == expected
