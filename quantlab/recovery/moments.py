"""Moments of what a layer is given and of what it should make of it, and how well a weight does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of rows x and their targets y, in G groups of K inputs and N outputs.

    Attributes:
        x: Mean of x, (G, K).
        y: Mean of y, (G, N).
        xx: Second moment of x, (G, K, K).
        yx: Of y with x, (G, N, K).
        yy: Of y, (G, N).
    """

    x: Floats
    y: Floats
    xx: Floats
    yx: Floats
    yy: Floats

    def centred(self) -> Moments:
        """The same about the means."""
        x, y = np.zeros_like(self.x), np.zeros_like(self.y)
        xx = self.xx - self.x[:, :, None] * self.x[:, None, :]
        yx = self.yx - self.y[:, :, None] * self.x[:, None, :]
        return Moments(x, y, xx, yx, self.yy - self.y * self.y)

    def loss(self, weight: Floats, bias: Floats) -> float:
        """Mean of ``|y - W x - b|^2``, the sum over all outputs.

        Args:
            weight: W, (G, N, K).
            bias: b, (G, N).
        """
        made = np.einsum("gnk,gk->gn", weight, self.x)
        squares = np.einsum("gnk,gnk->gn", weight @ self.xx - 2.0 * self.yx, weight) + self.yy
        return float(np.sum(squares + bias * (bias + 2.0 * made - 2.0 * self.y)))


class Sums:
    """Sums over rows, for the even and the odd batches of samples apart.

    Rows are taken relative to the first ones' mean, so that float32 products lose nothing to large means.
    """

    __slots__ = ("_n", "_origin", "_second", "_sums")

    def __init__(self, *, second: bool = True) -> None:
        """Sums of rows, and of their products if ``second``; these take K * K numbers a group."""
        self._second = second
        self._n = [0, 0]
        self._origin: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._sums: list[list[Floats]] = []

    @property
    def halves(self) -> int:
        """Halves that have rows."""
        return sum(n > 0 for n in self._n)

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, x: NDArray[np.float32], y: NDArray[np.float32], half: int) -> None:
        """Take in rows, (G, R, K), and their targets, (G, R, N), into half 0 or 1; the arrays are overwritten.

        Values whose products float32 cannot hold make the sums infinite or NaN, which `finite` tells.
        """
        if self._origin is None:
            means = [part.mean(axis=1, dtype=np.float64).astype(np.float32) for part in (x, y)]
            self._origin = means[0], means[1]
            groups, inputs, outputs = x.shape[0], x.shape[2], y.shape[2]
            shapes: list[tuple[int, ...]] = [(inputs,), (outputs,)]
            shapes += [(inputs, inputs), (outputs, inputs), (outputs,)] if self._second else []
            self._sums = [[np.zeros((groups, *shape)) for shape in shapes] for _ in self._n]
        near, aim = x, y
        near -= self._origin[0][:, None]
        aim -= self._origin[1][:, None]
        sums = self._sums[half]
        self._n[half] += x.shape[1]
        sums[0] += near.sum(axis=1, dtype=np.float64)
        sums[1] += aim.sum(axis=1, dtype=np.float64)
        if self._second:
            sums[2] += np.swapaxes(near, 1, 2) @ near
            sums[3] += np.swapaxes(aim, 1, 2) @ near
            sums[4] += np.einsum("grn,grn->gn", aim, aim, dtype=np.float64)

    def means(self) -> tuple[Floats, Floats]:
        """Means of all rows, (G, K), and of their targets, (G, N).

        Raises:
            ValueError: If there are no rows.
        """
        if self._origin is None:
            raise ValueError("no rows")
        near = [(self._sums[0][k] + self._sums[1][k]) / sum(self._n) for k in range(2)]
        return near[0] + self._origin[0].astype(np.float64), near[1] + self._origin[1].astype(np.float64)

    @property
    def finite(self) -> bool:
        """Whether all sums are."""
        return all(bool(np.isfinite(part).all()) for sums in self._sums for part in sums)

    def forget(self) -> None:
        """Give the memory back: there are no rows any more."""
        self._sums, self._origin, self._n = [], None, [0, 0]

    def moments(self, half: int | None = None) -> Moments:
        """Moments of one half's rows, or of all.

        Raises:
            ValueError: If there are no rows.
        """
        chosen = [half] if half is not None else [0, 1]
        n = sum(self._n[i] for i in chosen)
        if self._origin is None or not n:
            raise ValueError("no rows")
        sums = [np.asarray(np.sum([self._sums[i][k] for i in chosen], axis=0) / n) for k in range(5)]
        near_x, near_y, xx, yx, yy = sums
        x0, y0 = (part.astype(np.float64) for part in self._origin)
        x, y = near_x + x0, near_y + y0
        return Moments(
            x,
            y,
            xx + near_x[:, :, None] * x0[:, None] + x0[:, :, None] * near_x[:, None] + x0[:, :, None] * x0[:, None],
            yx + near_y[:, :, None] * x0[:, None] + y0[:, :, None] * near_x[:, None] + y0[:, :, None] * x0[:, None],
            yy + 2.0 * y0 * near_y + y0 * y0,
        )
