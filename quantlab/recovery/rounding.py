"""Second-order rounding: codes that keep a layer's output, not each weight, near its floating-point value.

The error of a layer's output over its calibration inputs is a quadratic form of the error of its weight,
``tr((Q - W) H (Q - W)^T)`` with ``H = E[x x^T]``. Columns are rounded one after the other; each rounding error is
carried by the columns that are not rounded yet, along the Cholesky factor of ``H^-1`` (OBQ and GPTQ: Frantar et al.
2022, arXiv:2208.11580 and arXiv:2210.17323, algorithm 1). Coordinate descent over the codes then lowers the form until
no single code can be improved. The same descent from the nearest codes is a second candidate, better for few channels:
so the result is never worse than the nearest codes.

All functions work on stacks of G matrices at once: one for an ordinary layer, one a channel for a depthwise one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.quantize import INT8_WEIGHT, SMALLEST_SCALE

Matrices = NDArray[np.float64]

_BLOCK = 64
_DESCENTS = 4


def channel_scales(weight: Matrices) -> NDArray[np.float64]:
    """Max-abs scales of weights (G, N, K), (G, N), exactly representable in float32; 1 for channels of zeros."""
    amax = np.abs(weight).max(axis=2, initial=0.0)
    scales = np.where(amax > 0.0, np.maximum(amax / INT8_WEIGHT.qmax, SMALLEST_SCALE), 1.0)
    return scales.astype(np.float32).astype(np.float64)


def damped(hessian: Matrices, strength: float) -> Matrices:
    """A positive definite matrix near a positive semidefinite one: ``strength`` times its mean diagonal is added.

    Inputs that are always zero and ranks that are missing get a positive diagonal; of a matrix of zeros, 1.

    Args:
        hessian: (G, K, K).
        strength: Positive.
    """
    mean = np.einsum("gkk->gk", hessian).mean(axis=1)
    added = np.where(mean > 0.0, strength * mean, 1.0)
    return np.asarray(hessian + added[:, None, None] * np.eye(hessian.shape[1]))


def least_squares(cross: Matrices, hessian: Matrices, weight: Matrices, strength: float) -> Matrices:
    """Weights that map the rows to their targets best, drawn towards given ones.

    Minimises ``E |y - V x|^2 + d |V - W|^2`` with ``d`` of `damped`.

    Args:
        cross: ``E[y x^T]``, (G, N, K).
        hessian: ``E[x x^T]``, (G, K, K).
        weight: Given weights, (G, N, K).
        strength: Of the draw, in mean diagonals of the Hessian.
    """
    wanted = cross - weight @ hessian
    solved = np.linalg.solve(damped(hessian, strength), np.swapaxes(wanted, 1, 2))
    return np.asarray(weight + np.swapaxes(solved, 1, 2))


def round_second_order(weight: Matrices, scales: NDArray[np.float64], hessian: Matrices) -> NDArray[np.int8]:
    """INT8 codes of a weight that keep the layer's output.

    Args:
        weight: (G, N, K).
        scales: (G, N), positive.
        hessian: Positive definite, (G, K, K); see `damped`.

    Returns:
        Codes, (G, N, K), from -127 to 127.
    """
    carried = _carried(weight, scales, hessian)
    starts = carried, _nearest(weight, scales[:, :, None])
    ends = [_descended(start, weight, scales, hessian) for start in starts]
    errors = [output_error(weight, codes * scales[:, :, None], hessian) for codes in ends]
    return np.where((errors[1] < errors[0])[:, :, None], ends[1], ends[0]).astype(np.int8)


def _carried(weight: Matrices, scales: NDArray[np.float64], hessian: Matrices) -> Matrices:
    """Codes column by column, those of the largest inputs first, each column's error carried by those behind it."""
    order = np.argsort(-np.einsum("gkk->gk", hessian), axis=1, kind="stable")
    inner = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    inverse = np.linalg.inv(inner)
    del inner
    upper = np.swapaxes(np.linalg.cholesky(inverse), 1, 2)
    del inverse
    left = np.take_along_axis(weight, order[:, None, :], axis=2)
    codes = np.empty_like(weight)
    n_columns = weight.shape[2]
    for start in range(0, n_columns, _BLOCK):
        stop = min(start + _BLOCK, n_columns)
        errors = np.empty((*weight.shape[:2], stop - start))
        for column in range(start, stop):
            codes[:, :, column] = _nearest(left[:, :, column], scales)
            error = (left[:, :, column] - codes[:, :, column] * scales) / upper[:, None, column, column]
            errors[:, :, column - start] = error
            left[:, :, column + 1 : stop] -= error[:, :, None] * upper[:, None, column, column + 1 : stop]
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    result = np.empty_like(weight)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], weight.shape), codes, axis=2)
    return result


def _descended(codes: Matrices, weight: Matrices, scales: NDArray[np.float64], hessian: Matrices) -> Matrices:
    """Codes none of which can be improved alone, or after `_DESCENTS` sweeps over all."""
    diagonal = np.einsum("gkk->gk", hessian)
    slope = (codes * scales[:, :, None] - weight) @ hessian
    for _ in range(_DESCENTS):
        n_changed = 0
        for column in range(weight.shape[2]):
            step = slope[:, :, column] / (diagonal[:, None, column] * scales)
            if np.abs(step).max(initial=0.0) <= 0.5:
                continue
            better = _nearest(codes[:, :, column] * scales - slope[:, :, column] / diagonal[:, None, column], scales)
            change = better - codes[:, :, column]
            groups, rows = np.nonzero(change)
            if len(rows):
                moved = (change * scales)[groups, rows]
                slope[groups, rows] += moved[:, None] * hessian[groups, column]
                codes[:, :, column] = better
                n_changed += len(rows)
        if not n_changed:
            break
    return codes


def _nearest(values: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(np.rint(values / scales), INT8_WEIGHT.qmin, INT8_WEIGHT.qmax)


def output_error(weight: Matrices, other: Matrices, hessian: Matrices) -> NDArray[np.float64]:
    """``E |(V - W) x|^2`` by output channel, (G, N).

    Args:
        weight: W, (G, N, K).
        other: V, (G, N, K).
        hessian: ``E[x x^T]``, (G, K, K).
    """
    error = other - weight
    return np.asarray(np.einsum("gnk,gnk->gn", error @ hessian, error))
