"""What differs between two sets of ranges: tensors, scales and, for caches, headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CACHE_DIFF_SCHEMA = "quantlab.cache-diff/1"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Move:
    """A tensor whose scale differs.

    Attributes:
        tensor: Name.
        left_amax: Largest magnitude that the first file represents, in the tensor's units.
        right_amax: The second file's.
        ratio: ``right_amax / left_amax``; infinite or 0 if one of them is 0.
    """

    tensor: str
    left_amax: float
    right_amax: float
    ratio: float

    @property
    def octaves(self) -> float:
        """How far the scale moved either way, in factors of two; infinite from or to 0."""
        return abs(math.log2(self.ratio)) if 0.0 < self.ratio < math.inf else math.inf


@dataclass(frozen=True, slots=True)
class Quantile:
    """One quantile of the scale ratios.

    Attributes:
        share: 0 to 1.
        ratio: Second file's scale over the first's, linear between neighbours.
    """

    share: float
    ratio: float


@dataclass(frozen=True, slots=True)
class CacheDiff:
    """Two sets of ranges side by side.

    Attributes:
        left: File name of the first.
        right: File name of the second.
        left_header: What it is, with version and algorithm for a cache.
        right_header: The same of the second.
        common: Tensors in both.
        equal: Tensors in both with the same scale, bit for bit.
        only_left: Tensors of the first alone, in its order.
        only_right: Tensors of the second alone.
        quantiles: Of the ratio second / first over common tensors that are zero in neither; empty if there are none.
        moves: Common tensors whose scales differ, the farthest first.
    """

    left: str
    right: str
    left_header: str
    right_header: str
    common: int
    equal: int
    only_left: tuple[str, ...]
    only_right: tuple[str, ...]
    quantiles: tuple[Quantile, ...]
    moves: tuple[Move, ...]


def diff_scales(
    left: Mapping[str, float], right: Mapping[str, float], *, names: tuple[str, str], headers: tuple[str, str]
) -> CacheDiff:
    """Compare two mappings from tensor name to scale.

    Args:
        left: The first file's scales, finite and not negative.
        right: The second file's.
        names: File names.
        headers: What each file is.
    """
    common = [name for name in left if name in right]
    pairs = [(left[name], right[name]) for name in common]
    ratios = np.array([b / a for a, b in pairs if a > 0.0 and b > 0.0])
    moves = [
        Move(name, 127.0 * a, 127.0 * b, b / a if a > 0.0 else math.inf)
        for name, (a, b) in zip(common, pairs, strict=True)
        if a != b
    ]
    quantiles: tuple[Quantile, ...] = ()
    if ratios.size:
        values = np.quantile(ratios, QUANTILES)
        quantiles = tuple(Quantile(share, float(value)) for share, value in zip(QUANTILES, values, strict=True))
    return CacheDiff(
        *names, *headers, len(common), len(common) - len(moves),
        tuple(name for name in left if name not in right), tuple(name for name in right if name not in left),
        quantiles, tuple(sorted(moves, key=lambda move: (-move.octaves, move.tensor))),
    )  # fmt: skip
