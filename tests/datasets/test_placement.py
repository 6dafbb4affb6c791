from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.datasets import Color, Interpolation, Preprocess, Resize
from quantlab.datasets.geometry import Placement
from quantlab.errors import ConfigError

SIDE = st.integers(1, 70)
PREPROCESSES = [
    Preprocess(interpolation=Interpolation.NEAREST, color=Color.RGB),
    Preprocess(Resize.STRETCH, (23, 41), interpolation=Interpolation.NEAREST, color=Color.RGB),
    Preprocess(Resize.LETTERBOX, (37, 50), interpolation=Interpolation.NEAREST, color=Color.RGB, fill=255),
    Preprocess(Resize.SHORTEST, shortest=33, interpolation=Interpolation.NEAREST, crop=(21, 28), color=Color.RGB),
    Preprocess(Resize.STRETCH, (23, 41), interpolation=Interpolation.NEAREST, crop=(10, 17), color=Color.RGB),
]


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are; blue tells them from a letterbox's fill."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(height)[:, None], np.arange(width)
    return image


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=lambda p: p.resize.value)
@given(height=SIDE, width=SIDE)
def test_says_where_every_pixel_came_from(preprocess: Preprocess, height: int, width: int) -> None:
    """Pillow's nearest filter takes the pixel that the centre lies in, so fed pixels name their place exactly."""
    fed = preprocess.apply(coordinates(height, width))
    placed = preprocess.placement((height, width))
    assert fed.shape[1:] == placed.fed and placed.image == (height, width)
    rows, columns = np.nonzero(fed[2] == 0)
    assert len(rows)
    y = (rows + 0.5 - placed.offset[0]) / placed.scale[0]
    x = (columns + 0.5 - placed.offset[1]) / placed.scale[1]
    # A centre may fall on the border of two pixels, where rounding decides.
    assert (np.abs(y - (fed[0, rows, columns] + 0.5)) <= 0.5 + 1e-6).all()
    assert (np.abs(x - (fed[1, rows, columns] + 0.5)) <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("preprocess", PREPROCESSES[:3], ids=lambda p: p.resize.value)
@given(height=SIDE, width=SIDE, seed=st.integers(0, 2**32 - 1))
def test_boxes_there_and_back(preprocess: Preprocess, height: int, width: int, seed: int) -> None:
    placed = preprocess.placement((height, width))
    corners = np.sort(np.random.default_rng(seed).random((5, 2, 2)), axis=1)
    boxes = corners.reshape(5, 4) * np.array([width, height, width, height])
    np.testing.assert_allclose(placed.boxes_to_image(placed.boxes_to_fed(boxes)), boxes, rtol=0, atol=1e-9)


def test_letterbox_by_hand() -> None:
    """A 100 x 200 image into 64 x 64: 32 rows from row 16 on, at a scale of 0.32."""
    placed = Preprocess(Resize.LETTERBOX, (64, 64)).placement((100, 200))
    assert placed == Placement((100, 200), (64, 64), (0.32, 0.32), (16.0, 0.0))
    box = placed.boxes_to_image(np.array([[16.0, 24.0, 32.0, 90.0]]))
    np.testing.assert_allclose(box, [[50.0, 25.0, 100.0, 100.0]])  # cut off at the image's lower edge


def test_rounding_gives_each_axis_its_own_scale() -> None:
    placed = Preprocess(Resize.LETTERBOX, (64, 64)).placement((33, 100))
    assert placed.scale == (21 / 33, 0.64) and placed.offset == (21.0, 0.0)


def test_crop_by_hand() -> None:
    placed = Preprocess(Resize.SHORTEST, shortest=50, crop=(40, 40)).placement((100, 200))
    assert placed == Placement((100, 200), (40, 40), (0.5, 0.5), (-5.0, -30.0))
    np.testing.assert_allclose(placed.boxes_to_image(np.array([[0.0, 0.0, 40.0, 40.0]])), [[60.0, 10.0, 140.0, 90.0]])


def test_size_that_is_left_open() -> None:
    with pytest.raises(ConfigError, match="'letterbox' has no size"):
        Preprocess(Resize.LETTERBOX).placement((10, 10))
