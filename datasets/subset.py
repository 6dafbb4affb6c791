"""The part of a data set that ``--limit`` keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantlab.errors import ConfigError


def balanced_subset(labels: Sequence[int | None] | None, total: int, limit: int | None, seed: int) -> tuple[int, ...]:
    """Indices of at most ``limit`` samples, as evenly over the classes as they allow, in source order.

    The same arguments give the same samples, and a smaller limit a part of a larger one's. Samples without a label
    count as one class; without labels the choice is uniform.

    Args:
        labels: Class index of each sample, or None if unknown.
        total: Number of samples.
        limit: How many to keep; None or more than there are keeps all.
        seed: Of the random choice.

    Raises:
        ConfigError: If ``limit`` is not positive.
    """
    if limit is not None and limit <= 0:
        raise ConfigError("the limit on samples is wrong", got=limit, expected="1 or more")
    if limit is None or limit >= total:
        return tuple(range(total))
    order = np.random.default_rng(seed).permutation(total)
    classes = np.full(total, -1) if labels is None else np.array([-1 if x is None else x for x in labels])
    shuffled = classes[order]
    by_class = np.argsort(shuffled, kind="stable")
    _, first, counts = np.unique(shuffled[by_class], return_index=True, return_counts=True)
    rank = np.empty(total, np.int64)  # position of each shuffled sample within its class
    rank[by_class] = np.arange(total) - np.repeat(first, counts)
    chosen = order[np.argsort(rank, kind="stable")[:limit]]
    return tuple(int(index) for index in np.sort(chosen))
