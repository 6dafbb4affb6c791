"""Finding samples by what a file calls them: their id or, where that is unambiguous, their base name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from quantlab.documents import near_match
from quantlab.errors import DataError

_MOST_COMPARED = 10_000


class SampleNames:
    """The samples of a data set by name.

    Args:
        ids: Of all samples, in order.
        dataset: What the data set is called, for messages.
    """

    def __init__(self, ids: Sequence[str], dataset: str) -> None:
        self._ids, self._dataset = ids, dataset
        self._by_id = {name: index for index, name in enumerate(ids)}
        self._by_base: defaultdict[str, list[int]] = defaultdict(list)
        for name, index in self._by_id.items():
            self._by_base[name.rsplit("/", 1)[-1]].append(index)

    def index(self, written: str, row: str) -> int:
        """Index of the sample that a row names.

        Args:
            written: What the row says.
            row: The row, for messages, such as ``labels file x.csv line 3``.

        Raises:
            DataError: If there is no such sample, or there are several.
        """
        name = written.removeprefix("./")
        matches = [self._by_id[name]] if name in self._by_id else self._by_base.get(name, [])
        if not matches:
            near = near_match(name, self._ids) if len(self._ids) <= _MOST_COMPARED else None
            raise DataError(
                f"{row} is about a sample that is not in {self._dataset}",
                got=repr(written),
                hint=f"did you mean {near!r}?" if near else (f"ids look like {self._ids[0]!r}" if self._ids else None),
            )
        if len(matches) > 1:
            raise DataError(
                f"{row} names {len(matches)} samples",
                got=repr(written),
                expected=f"one of {self._ids[matches[0]]!r}, {self._ids[matches[1]]!r}, ...",
            )
        return matches[0]
