"""What positive factors on the channels of tensors do to a node: pass through it, end in its constants, or stop.

A rule is exact in real arithmetic for any positive factors, or says under which condition. Whatever a rule does not
mention is a barrier: factors there would change what the node computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from quantlab.graph.channel_claims import ClipLimit, NodeClaims, Role

_UNBOUNDED = 3.4e38
"""Bounds from here on stand for infinity: exporters write the largest float32."""

Rule = Callable[[NodeClaims], None]


def claim(claims: NodeClaims) -> None:
    """Apply the rule of the node's operator, if it has one."""
    rule = _RULES.get(claims.node.op_type)
    if rule is not None and claims.node.domain in ("", "ai.onnx") and claims.node.input:
        rule(claims)


def _along(rank: int, axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if i == axis else 1 for i in range(rank))


def _convolution(claims: NodeClaims) -> None:
    weight = claims.constant(1)
    groups = int(claims.attribute("group", 1))
    if weight is None or len(weight) < 3 or weight[0] % groups:
        return
    split = (groups, weight[0] // groups, *weight[1:])
    grouped = (groups, 1, weight[1], *[1] * (len(weight) - 2))  # channels of a group along axis 1 of the weight
    rows = _along(len(weight), 0, weight[0])
    transposed = claims.node.op_type == "ConvTranspose"
    source, target = (claims.node.input[0], 1), (claims.node.output[0], 1)
    if transposed:
        claims.absorbs(source, Role.CONSUMER, 1, rows, inverse=True)
    else:
        claims.absorbs(source, Role.CONSUMER, 1, grouped, inverse=True, view=split)
    claims.takes(1)
    if claims.absorbs_bias(target, 2, weight[1] * groups if transposed else weight[0]):
        if transposed:
            claims.absorbs(target, Role.PRODUCER, 1, grouped, view=split)
        else:
            claims.absorbs(target, Role.PRODUCER, 1, rows)
        claims.makes(1)


def _gemm(claims: NodeClaims) -> None:
    weight = claims.constant(1)
    if weight is None or len(weight) != 2 or claims.attribute("transA", 0):
        return
    inner, outer = (1, 0) if claims.attribute("transB", 0) else (0, 1)
    _product(claims, 0, 1, 1, inner, outer)


def _matmul(claims: NodeClaims) -> None:
    for slot in (1, 0):
        weight, rank = claims.constant(slot), len(claims.shape_in(1 - slot))
        if weight is not None and len(weight) == 2 and rank >= 2:
            _product(claims, 1 - slot, rank - 1 if slot == 1 else rank - 2, slot, 1 - slot, slot)
            return


def _product(claims: NodeClaims, source: int, axis: int, slot: int, inner: int, outer: int) -> None:
    """A product along an axis of an input: the weight's inner axis takes it up, the outer one makes the output's."""
    weight = claims.constant(slot) or ()
    claims.absorbs(
        (claims.node.input[source], axis), Role.CONSUMER, slot, _along(2, inner, weight[inner]), inverse=True
    )
    claims.takes(axis, source)
    target = (claims.node.output[0], axis)
    if claims.absorbs_bias(target, 2, weight[outer]):
        claims.absorbs(target, Role.PRODUCER, slot, _along(2, outer, weight[outer]))
        claims.makes(axis)


def _normalization(claims: NodeClaims) -> None:
    """Scale and bias make the output. The input stops: the small number added to the variance has its units."""
    scale, rank = claims.constant(1), len(claims.shape_in())
    axis = 1
    if claims.node.op_type == "LayerNormalization":
        axis = rank - 1
        if claims.attribute("axis", -1) not in (-1, rank - 1):
            return
    training = claims.attribute("training_mode", 0)
    if scale is None or len(scale) != 1 or axis < 1 or training:
        return
    target = (claims.node.output[0], axis)
    if claims.absorbs_bias(target, 2, scale[0]):
        claims.absorbs(target, Role.PRODUCER, 1, scale)
        claims.makes(axis)


def _elementwise(claims: NodeClaims) -> None:
    for axis in range(len(claims.shape_in())):
        claims.through(0, axis, axis)


def _clip(claims: NodeClaims) -> None:
    bounds = [-math.inf, math.inf]
    for slot in (1, 2):
        value = claims.values(slot)
        if claims.given(slot) and (value is None or value.size != 1):
            return
        if value is not None:
            bounds[slot - 1] = float(np.asarray(value, np.float64).reshape(-1)[0])
    low, high = bounds
    if not (low == 0.0 or low < -_UNBOUNDED) or not high > 0.0:
        return
    for axis in range(len(claims.shape_in())):
        claims.through(0, axis, axis)
        if high < _UNBOUNDED:
            claims.limits.append(((claims.node.output[0], axis), ClipLimit(claims.node.output[0], high)))


def _pooling(claims: NodeClaims) -> None:
    if len(claims.shape_in()) > 2:
        claims.through(0, 1, 1)


def _resize(claims: NodeClaims) -> None:
    """Interpolation is linear in the samples of a channel; a crop may hold values from outside."""
    mode = [attribute.s for attribute in claims.node.attribute if attribute.name == "coordinate_transformation_mode"]
    source, target = claims.shape_in(), claims.shape_out()
    if b"tf_crop_and_resize" not in mode and len(source) == len(target) > 2 and source[1] == target[1] is not None:
        claims.through(0, 1, 1)


def _reduction(claims: NodeClaims) -> None:
    source = claims.shape_in()
    axes = [int(i) for attribute in claims.node.attribute if attribute.name == "axes" for i in attribute.ints]
    if claims.given(1):
        stored = claims.values(1)
        axes = [int(i) for i in stored.reshape(-1)] if stored is not None else []
    reduced = {axis % len(source) for axis in axes} if source else set()
    if not reduced:
        return
    kept = bool(claims.attribute("keepdims", 1))
    for axis in range(len(source)):
        if axis not in reduced:
            claims.through(0, axis, axis if kept else axis - sum(1 for i in reduced if i < axis))


def _pad(claims: NodeClaims) -> None:
    mode = next((attribute.s for attribute in claims.node.attribute if attribute.name == "mode"), b"constant")
    pads, fill, rank = claims.values(1), claims.values(2), len(claims.shape_in())
    zero = not claims.given(2) or (fill is not None and not np.asarray(fill, np.float64).any())
    if pads is None or pads.size != 2 * rank or claims.given(3) or (mode == b"constant" and not zero):
        return
    for axis in range(rank):
        if not pads.reshape(2, rank)[:, axis].any():
            claims.through(0, axis, axis)


def _reshape(claims: NodeClaims) -> None:
    """An axis survives if as many elements lie behind one step along it as before."""
    source, target = _strides(claims.shape_in()), _strides(claims.shape_out())
    behind = {place: axis for axis, place in target}
    for axis, place in source:
        if place in behind:
            claims.through(0, axis, behind[place])


def _strides(shape: tuple[int | str | None, ...]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Axes of more than one element with their size and step, from the last to the first that is not known."""
    step = 1
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        if not isinstance(size, int) or size < 1:
            return
        if size > 1:
            yield axis, (size, step)
        step *= size


def _transpose(claims: NodeClaims) -> None:
    rank = len(claims.shape_in())
    order = [int(i) for attribute in claims.node.attribute if attribute.name == "perm" for i in attribute.ints]
    for behind, axis in enumerate(order or reversed(range(rank))):
        claims.through(0, axis, behind)


def _gather(claims: NodeClaims) -> None:
    rank, chosen = len(claims.shape_in()), claims.index.shape(claims.given(1))
    if chosen is None or not rank or claims.given(0) in claims.constants:
        return
    gathered = int(claims.attribute("axis", 0)) % rank
    for axis in range(rank):
        if axis != gathered:
            claims.through(0, axis, axis if axis < gathered else axis - 1 + len(chosen))


def _concat(claims: NodeClaims) -> None:
    rank = len(claims.shape_out())
    if not rank or any(name in claims.constants for name in claims.node.input):
        return
    for axis in range(rank):
        if axis != int(claims.attribute("axis", 0)) % rank:
            for slot in range(len(claims.node.input)):
                claims.through(slot, axis, axis)


def _split(claims: NodeClaims) -> None:
    rank = len(claims.shape_in())
    for axis in range(rank):
        if axis != int(claims.attribute("axis", 0)) % rank:
            for output in range(len(claims.node.output)):
                claims.through(0, axis, axis, output)


def _sum(claims: NodeClaims) -> None:
    """Joins of activations; a constant is an offset."""
    names = list(claims.node.input)
    stored = [slot for slot, name in enumerate(names) if name in claims.constants]
    if len(names) == 2 and len(stored) == 1 and claims.node.op_type in ("Add", "Sub"):
        _offset(claims, 1 - stored[0], stored[0])
    elif not stored:
        shapes = [claims.shape_in(slot) for slot in range(len(names))]
        rank = len(claims.shape_out())
        for axis in range(rank):
            if all(_size(shape, rank, axis) == _size(shapes[0], rank, axis) is not None for shape in shapes):
                for slot, shape in enumerate(shapes):
                    claims.through(slot, axis - rank + len(shape), axis)


def _size(shape: tuple[int | str | None, ...], rank: int, axis: int) -> int | None:
    """Size of a broadcast operand along an axis of the result; None if not known or not there."""
    own = axis - rank + len(shape)
    size = shape[own] if own >= 0 else None
    return size if isinstance(size, int) else None


def _offset(claims: NodeClaims, slot: int, offset: int) -> None:
    shape, stored = claims.shape_in(slot), claims.constant(offset)
    if stored is None or len(stored) > len(shape):
        return
    rank = len(shape)
    for axis, size in enumerate(shape):
        if not isinstance(size, int):
            continue
        own = axis - rank + len(stored)
        lane = (claims.node.output[0], axis)
        if own >= 0 and stored[own] == size:
            claims.absorbs(lane, Role.OFFSET, offset, _along(len(stored), own, size))
        elif math.prod(stored) == 1:
            whole = _along(rank, axis, size)
            claims.absorbs(lane, Role.OFFSET, offset, whole, view=(1,) * rank, result=whole)
        else:
            continue
        claims.through(slot, axis, axis)


def _scaling(claims: NodeClaims) -> None:
    """A factor: a constant one by channel takes up and makes factors, one for all channels lets them pass."""
    divides = claims.node.op_type == "Div"
    for slot in (1,) if divides else (1, 0):
        stored, source = claims.constants.get(claims.given(slot)), claims.shape_in(1 - slot)
        if stored is None:
            continue
        if len(stored.dims) <= len(source):
            for axis in range(len(source)):
                _constant_scaling(claims, 1 - slot, slot, axis)
        return
    if any(name in claims.constants for name in claims.node.input):
        return
    for slot in (0,) if divides else (0, 1):
        if _is_gate(claims.shape_in(1 - slot), claims.shape_in(slot), claims.shape_out()):
            for axis in range(len(claims.shape_out())):
                claims.through(slot, axis, axis)
            return


def _constant_scaling(claims: NodeClaims, source: int, slot: int, axis: int) -> None:
    shape, stored = claims.shape_in(source), tuple(claims.constants[claims.given(slot)].dims)
    own = axis - len(shape) + len(stored)
    if own < 0 or stored[own] == 1:
        claims.through(source, axis, axis)
    elif claims.constant(slot) is not None and stored[own] == shape[axis]:
        divides = claims.node.op_type == "Div"
        along = _along(len(stored), own, stored[own])
        lanes = (claims.node.input[source], axis), (claims.node.output[0], axis)
        claims.absorbs(lanes[0], Role.CONSUMER, slot, along, inverse=not divides)
        claims.absorbs(lanes[1], Role.PRODUCER, slot, along, inverse=divides)
        claims.takes(axis, source)
        claims.makes(axis)


def _is_gate(
    gate: tuple[int | str | None, ...], main: tuple[int | str | None, ...], result: tuple[int | str | None, ...]
) -> bool:
    """Whether one operand is spread over the other, which has the result's shape behind the batch."""
    if not gate or len(main) != len(result) or main[1:] != result[1:]:
        return False
    sizes = [gate[axis - len(main) + len(gate)] if axis >= len(main) - len(gate) else 1 for axis in range(len(main))]
    return any(size == 1 != main[axis] for axis, size in enumerate(sizes) if axis > 0)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "BatchNormalization"), _normalization),
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Neg", "Abs"), _elementwise),
    "Clip": _clip,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pooling),
    "Resize": _resize,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduction),
    "Pad": _pad,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Gather": _gather,
    "Concat": _concat,
    "Split": _split,
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Max", "Min"), _sum),
    **dict.fromkeys(("Mul", "Div"), _scaling),
}
