"""Rows of layers: every time is in exactly one of them, whatever the runtimes fused."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from quantlab.engines.layer_time import LayerKind, LayerTime
from quantlab.harness.alignment import REST, LayerRow, align

COMPUTE, REFORMAT, QUANTIZE = LayerKind.COMPUTE, LayerKind.REFORMAT, LayerKind.QUANTIZE


def layer(*sources: str, ms: float = 1.0, kind: LayerKind = COMPUTE, name: str = "", operator: str = "") -> LayerTime:
    return LayerTime(name or "+".join(sources), sources, kind, ms, operator, "fp32" if kind is COMPUTE else "")


def nodes(rows: tuple[LayerRow, ...]) -> list[tuple[str, ...]]:
    return [row.nodes for row in rows]


def times(rows: tuple[LayerRow, ...]) -> list[tuple[float | None, ...]]:
    return [tuple(None if cell is None else cell.ms for cell in row.cells) for row in rows]


def test_without_fusions_each_node_is_a_row() -> None:
    rows = align([[layer("a"), layer("b", ms=2)], [layer("a", ms=3), layer("b", ms=1)]])
    assert nodes(rows) == [("a",), ("b",)]
    assert times(rows) == [(1, 3), (2, 1)]
    first, second = rows[0].cells
    assert first is not None and second is not None
    assert (first.ratio, second.ratio) == (None, 3.0)
    assert math.isclose(first.share, 1 / 3)
    assert second.share == 0.75


def test_fused_by_the_reference() -> None:
    rows = align([[layer("a", "b"), layer("c")], [layer("a"), layer("b", ms=4), layer("c")]])
    assert nodes(rows) == [("a", "b"), ("c",)]
    assert times(rows) == [(1, 5), (1, 1)]


def test_fused_by_the_other() -> None:
    rows = align([[layer("a"), layer("b"), layer("c")], [layer("a"), layer("c", "b", ms=9)]])
    assert nodes(rows) == [("a",), ("b", "c")]
    assert times(rows) == [(1, 1), (2, 9)]


def test_fusions_that_overlap_are_one_row() -> None:
    """a+b here and b+c there: no smaller set is whole layers in both."""
    rows = align([[layer("a", "b"), layer("c"), layer("d")], [layer("a"), layer("b", "c"), layer("d")]])
    assert nodes(rows) == [("a", "b", "c"), ("d",)]
    assert times(rows) == [(2, 2), (1, 1)]


def test_conversions_are_in_the_row_that_they_serve_and_join_nothing() -> None:
    rows = align(
        [
            [layer("a"), layer("b")],
            [
                layer("a", "b", name="reorder", kind=REFORMAT, ms=0.5),
                layer("a"),
                layer("b", name="q", kind=QUANTIZE, ms=0.25),
                layer("b", name="dq", kind=QUANTIZE, ms=0.25),
                layer("b", operator="Conv"),
            ],
        ]
    )
    assert nodes(rows) == [("a",), ("b",)]
    one, two = rows[0].cells[1], rows[1].cells[1]
    assert one is not None and two is not None
    assert (one.ms, one.layers, one.reformats, one.reformat_ms, one.quantizes) == (1.5, 1, 1, 0.5, 0)
    assert (two.ms, two.layers, two.reformats, two.quantizes, two.quantize_ms) == (1.5, 1, 0, 2, 0.5)
    assert (two.operators, two.precisions) == (("Conv",), ("fp32",))


def test_conversions_of_no_known_layer_come_last() -> None:
    rows = align([[layer(name="copy", kind=REFORMAT), layer("a")], [layer("a"), layer("x", name="q", kind=QUANTIZE)]])
    assert nodes(rows) == [("a",), ()]
    assert times(rows) == [(1, 1), (1, 1)]
    assert rows[1].label == REST


def test_layers_without_nodes() -> None:
    """One that is called like a node is that node; others share a row with those of their name."""
    rows = align([[layer("a"), layer(name="kernel")], [layer(name="a", ms=2), layer(name="kernel"), layer(name="own")]])
    assert nodes(rows) == [("a",), ("kernel",), ("own",)]
    assert times(rows) == [(1, 2), (1, 1), (None, 1)]


def test_names_that_are_not_unique_are_added_up() -> None:
    rows = align([[layer("a", name="x"), layer("a", name="x"), layer("b", name="x")], [layer("a"), layer("b")]])
    assert times(rows) == [(2, 1), (1, 1)]


def test_an_engine_that_runs_nothing() -> None:
    assert align([[], []]) == ()
    rows = align([[], [layer("a")]])
    assert times(rows) == [(None, 1)]
    assert rows[0].cells[1] is not None
    assert rows[0].cells[1].ratio is None


def test_no_ratio_to_no_time() -> None:
    rows = align([[layer("a", ms=0.0)], [layer("a", ms=1.0)]])
    zero, one = rows[0].cells
    assert zero is not None and one is not None
    assert (zero.share, one.ratio) == (0.0, None)


def test_the_reference_gives_order_and_names() -> None:
    """Nodes that only a variant has are no part of the model's names, unless nothing else is in the row."""
    rows = align([[layer("b_split", "b"), layer("new"), layer("a")], [layer("a"), layer("b")]], reference=1)
    assert nodes(rows) == [("a",), ("b",), ("new",)]
    assert [None if cell is None else cell.ratio for cell in rows[1].cells] == [1.0, None]


def test_labels_are_short() -> None:
    def label(*names: str) -> str:
        return LayerRow(names, ()).label

    assert label("/f/conv") == "/f/conv"
    assert label("/f/b.0/Conv", "/f/b.2/Relu") == "/f/b.0/Conv + b.2/Relu"
    assert label("/f/Conv", "/f/Relu") == "/f/Conv + Relu"
    assert label("conv", "relu") == "conv + relu"
    assert label("/f/Conv", "/f/Conv") == "/f/Conv + Conv"
    assert label("/f/Conv", "b", "c") == "/f/Conv + 2 more"
    assert label("a/b", "a") == "a/b + a"


def test_hostile_names() -> None:
    evil = ("\x1b[31m", "a + b", "", " ", "\u202e", "[ONNX Layer: x]", "nul\x00", "=cmd()", "a" * 10_000)
    rows = align([[layer(name) for name in evil], [layer(*evil)]])
    assert len(rows) == 1
    assert rows[0].nodes == evil


def test_long_chains_are_quick_and_not_recursive() -> None:
    n = 50_000
    names = [str(i) for i in range(n)]
    rows = align([[layer(a, b) for a, b in itertools.pairwise(names)], [layer(name) for name in names]])
    assert len(rows) == 1
    assert len(rows[0].nodes) == n


LAYERS = st.lists(
    st.builds(
        LayerTime,
        name=st.sampled_from(["", "n0", "n1", "k", "\x1b"]),
        sources=st.lists(st.sampled_from([f"n{i}" for i in range(8)]), max_size=3).map(tuple),
        kind=st.sampled_from(LayerKind),
        ms=st.integers(0, 1000).map(float),
        operator=st.sampled_from(["", "Conv"]),
    ),
    max_size=12,
)


@given(st.lists(LAYERS, min_size=1, max_size=3), st.data())
def test_every_time_is_in_exactly_one_row(engines: list[list[LayerTime]], data: st.DataObject) -> None:
    reference = data.draw(st.integers(0, len(engines) - 1))
    rows = align(engines, reference)
    for number, layers in enumerate(engines):
        cells = [row.cells[number] for row in rows if row.cells[number] is not None]
        assert sum(cell.ms for cell in cells if cell) == sum(one.ms for one in layers)  # whole numbers: exact
        for kind, count in (
            (COMPUTE, sum(cell.layers for cell in cells if cell)),
            (REFORMAT, sum(cell.reformats for cell in cells if cell)),
            (QUANTIZE, sum(cell.quantizes for cell in cells if cell)),
        ):
            assert count == sum(one.kind is kind for one in layers)
        total = sum(one.ms for one in layers)
        assert math.isclose(sum(cell.share for cell in cells if cell), 1.0 if total else 0.0)
    assert all(any(cell is not None for cell in row.cells) for row in rows)
    names = [name for row in rows for name in row.nodes]
    assert len(names) == len(set(names)), "a node is in one row"
    assert rows == align(engines, reference), "the same again"
    for layers in engines:  # what one engine computes in one layer is in one row
        for one in layers:
            if one.kind is COMPUTE and one.sources:
                assert sum(bool({*one.sources} & {*row.nodes}) for row in rows) <= 1
