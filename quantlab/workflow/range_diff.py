"""Comparing two files that hold ranges: what to load, and how the comparison is shown."""

from __future__ import annotations

from pathlib import Path

from quantlab.calibrators.cache_diff import CACHE_DIFF_SCHEMA, CacheDiff, diff_scales
from quantlab.documents import dump_json
from quantlab.records import to_plain
from quantlab.workflow.ranges import read_ranges

_SHOWN = 10


def diff_files(left: Path, right: Path) -> CacheDiff:
    """Compare the symmetric ranges of two files of any kind that holds them.

    Raises:
        QuantlabError: If one is missing, damaged or holds no such ranges.
    """
    one, two = read_ranges(left), read_ranges(right)
    return diff_scales(one.scales(), two.scales(), names=(str(left), str(right)), headers=(one.header, two.header))


def diff_document(diff: CacheDiff) -> str:
    """The comparison as a JSON document."""
    return dump_json({"schema": CACHE_DIFF_SCHEMA, **to_plain(diff)})


def diff_text(diff: CacheDiff) -> str:
    """The comparison for people: headers, tensors of one file alone, ratios, and the farthest moves."""
    lines = [
        f"A  {diff.left}: {diff.left_header}",
        f"B  {diff.right}: {diff.right_header}",
        f"{diff.common} tensors in both, {diff.equal} with the same scale bit for bit",
    ]
    for label, names in (("A", diff.only_left), ("B", diff.only_right)):
        if names:
            more = f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{len(names)} in {label} alone: {', '.join(names[:_SHOWN])}{more}")
    if diff.quantiles:
        shown = "  ".join(f"{100 * quantile.share:g} %: {quantile.ratio:.4g}" for quantile in diff.quantiles)
        lines.append(f"scale of B / scale of A  {shown}")
    if diff.moves:
        lines.append(f"{'amax in A':>12}  {'amax in B':>12}  {'B / A':>9}  tensor")
        lines += [
            f"{move.left_amax:12.6g}  {move.right_amax:12.6g}  {move.ratio:9.4g}  {move.tensor}"
            for move in diff.moves[:_SHOWN]
        ]
        if len(diff.moves) > _SHOWN:
            lines.append(f"... {len(diff.moves) - _SHOWN} more, all with --json")
    return "\n".join(lines)
