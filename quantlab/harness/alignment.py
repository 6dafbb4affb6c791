"""Layers of several engines side by side: each runtime fuses and splits the model's nodes in its own way.

A row is a set of the model's nodes that every engine computes in whole layers: the connected parts of the graph in
which two nodes are joined if any engine computes them in one layer. Every layer is in exactly one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantlab.engines.layer_time import LayerKind, LayerTime

_Key = tuple[str, str]
_NODE, _LAYER, _REST = "node", "layer", "rest"

REST = "conversions of no known layer"
"""What a row without a name holds: reformats, quantize and dequantize steps of which no layer is known."""


@dataclass(frozen=True, slots=True)
class LayerCell:
    """What one engine spends in one row.

    Attributes:
        ms: Time of all its layers in the row: sum of their medians.
        share: Of the time of all the engine's layers.
        ratio: To the reference's time of the row; None for the reference itself, and where that has no time.
        layers: Layers that compute.
        reformats: Layers that only move or cast values.
        reformat_ms: Their time.
        quantizes: Quantize and dequantize steps that were fused into no other layer.
        quantize_ms: Their time.
        operators: Kinds of the layers that compute, each once, in the order of execution.
        precisions: Types of their operands, likewise; what is not known is left out.
    """

    ms: float
    share: float
    ratio: float | None
    layers: int
    reformats: int
    reformat_ms: float
    quantizes: int
    quantize_ms: float
    operators: tuple[str, ...]
    precisions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """Nodes of the model, and what each engine spends on them.

    Attributes:
        nodes: Names of the nodes, in the reference's order of execution; of a layer of which no node is known, its own
            name; empty for what belongs to no known layer.
        cells: One for each engine, in their order; None for an engine that runs nothing of it.
    """

    nodes: tuple[str, ...]
    cells: tuple[LayerCell | None, ...]

    @property
    def label(self) -> str:
        """The nodes in short: ``/block.0/Conv + Relu``, ``/block.0/Conv + 2 more``; folders are shared."""
        if not self.nodes:
            return REST
        first, *others = self.nodes
        if len(others) == 1:
            return f"{first} + {_within(others[0], first)}"
        return f"{first} + {len(others):,} more" if others else first


def align(engines: Sequence[Sequence[LayerTime]], reference: int = 0) -> tuple[LayerRow, ...]:
    """Put the layers of engines of one model side by side.

    A layer that computes is in the row of its nodes. One of which no node is known is in the row of the node that has
    its name, else in a row of its own, which layers of that name in other engines share. A reformat, and a quantize or
    dequantize step, is in the row of the first node that it serves and that some layer computes, else in a last row
    without a name. Cost: nearly linear in the number of layers and nodes.

    Args:
        engines: Layers of each, in the order of execution.
        reference: Position of the engine that the others are compared with.

    Returns:
        Rows in the order of the reference's execution; what it does not run follows in that of the other engines.
    """
    groups = _Groups()
    order = [reference, *(i for i in range(len(engines)) if i != reference)]
    for number in order:
        for layer in engines[number]:
            if layer.kind is LayerKind.COMPUTE:
                groups.join(layer.sources)
    members: dict[_Key, list[list[LayerTime]]] = {}
    for number in order:
        for layer in engines[number]:
            row = members.setdefault(groups.key(layer), [[] for _ in engines])
            row[number].append(layer)
    names = _names(groups, [engines[number] for number in order])
    totals = [math.fsum(layer.ms for layer in layers) for layers in engines]
    keys = sorted(members, key=lambda key: key[0] == _REST)  # stable: the last row is that of the rest
    return tuple(
        LayerRow(names.get(key, (key[1],) if key[0] == _LAYER else ()), _cells(members[key], totals, reference))
        for key in keys
    )


def _within(name: str, other: str) -> str:
    """A name without the folders that it shares with another."""
    parts, others = name.split("/"), other.split("/")
    n = next((i for i, (a, b) in enumerate(zip(parts[:-1], others[:-1], strict=False)) if a != b), None)
    return "/".join(parts[min(len(parts), len(others)) - 1 if n is None else n :])


class _Groups:
    """Disjoint sets of node names."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, names: Sequence[str]) -> None:
        for name in names:
            self._parents.setdefault(name, name)
        for name in names[1:]:
            first, other = self.root(names[0]), self.root(name)
            if first != other:
                self._parents[other] = first

    def root(self, name: str) -> str:
        while (parent := self._parents[name]) != name:
            self._parents[name] = self._parents[parent]
            name = parent
        return name

    def key(self, layer: LayerTime) -> _Key:
        """The row of a layer."""
        computes = layer.kind is LayerKind.COMPUTE
        for name in (*layer.sources, layer.name) if computes else layer.sources:
            if name in self._parents:
                return (_NODE, self.root(name))
        return (_LAYER, layer.name) if computes else (_REST, "")


def _names(groups: _Groups, engines: Iterable[Sequence[LayerTime]]) -> dict[_Key, tuple[str, ...]]:
    """The nodes of each row, the reference's if it runs any: others are what a variant has added to the model."""
    found: dict[_Key, tuple[str, ...]] = {}
    for layers in engines:
        own: dict[_Key, dict[str, None]] = {}
        for layer in layers:
            if layer.kind is LayerKind.COMPUTE and layer.sources:
                own.setdefault(groups.key(layer), {}).update(dict.fromkeys(layer.sources))
        for key, names in own.items():
            found.setdefault(key, tuple(names))
    return found


def _cells(
    members: Sequence[Sequence[LayerTime]], totals: Sequence[float], reference: int
) -> tuple[LayerCell | None, ...]:
    base = math.fsum(layer.ms for layer in members[reference])
    return tuple(
        _cell(layers, total, None if number == reference or base <= 0.0 else base) if layers else None
        for number, (layers, total) in enumerate(zip(members, totals, strict=True))
    )


def _cell(layers: Sequence[LayerTime], total: float, base: float | None) -> LayerCell:
    ms = math.fsum(layer.ms for layer in layers)
    computing = [layer for layer in layers if layer.kind is LayerKind.COMPUTE]
    reformats = [layer.ms for layer in layers if layer.kind is LayerKind.REFORMAT]
    quantizes = [layer.ms for layer in layers if layer.kind is LayerKind.QUANTIZE]
    return LayerCell(
        ms=ms,
        share=ms / total if total > 0.0 else 0.0,
        ratio=None if base is None else ms / base,
        layers=len(computing),
        reformats=len(reformats),
        reformat_ms=math.fsum(reformats),
        quantizes=len(quantizes),
        quantize_ms=math.fsum(quantizes),
        operators=tuple(dict.fromkeys(layer.operator for layer in computing if layer.operator)),
        precisions=tuple(dict.fromkeys(layer.precision for layer in computing if layer.precision)),
    )
