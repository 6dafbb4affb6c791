"""Settling the shapes of a model's inputs: what the user gives, what the weights tell, and which axis is the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto

from quantlab.documents import near_match
from quantlab.errors import ConfigError, ModelError
from quantlab.graph.index import GraphIndex
from quantlab.graph.model import TensorSpec, model_inputs

BATCH = "batch"
"""Name of the dynamic batch dimension in a prepared model."""


@dataclass(frozen=True, slots=True)
class SettledInputs:
    """Inputs whose shapes are all numbers.

    Attributes:
        specs: The inputs, with batch size 1 where the batch may be dynamic.
        may_batch: Whether the first axis of every input was 1 or symbolic, so that it may be a batch.
        notes: What was concluded, in words.
    """

    specs: tuple[TensorSpec, ...]
    may_batch: bool
    notes: tuple[str, ...]

    @property
    def first_axis(self) -> int | None:
        """Size of the first axis if all inputs share it, else None."""
        sizes = {spec.shape[0] if spec.shape else None for spec in self.specs}
        size = sizes.pop() if len(sizes) == 1 else None
        return size if isinstance(size, int) else None


def settle_inputs(
    proto: ModelProto, dims: Mapping[str, int], input_shapes: Mapping[str, tuple[int, ...]]
) -> SettledInputs:
    """Find a number for every dimension of every input.

    Args:
        proto: The model.
        dims: Values of symbolic dimensions by name.
        input_shapes: Whole shapes by input name, with the batch axis.

    Raises:
        ConfigError: If ``dims`` or ``input_shapes`` name what the model lacks, have sizes below 1, or contradict it.
        ModelError: If a dimension other than the batch remains unknown.
    """
    inputs = model_inputs(proto)
    known = _check_overrides(inputs, dims, input_shapes)
    index = GraphIndex(proto.graph)
    specs: list[TensorSpec] = []
    notes: list[str] = []
    may_batch = True
    for spec in inputs:
        given = input_shapes.get(spec.name)
        shape = given or spec.shape
        if shape is None:
            raise _unknown(spec, "no shape at all", "NAME:1x3x224x224")
        settled: list[int] = []
        for axis, dim in enumerate(shape):
            value = dim if isinstance(dim, int) else known.get(dim or "")
            if value is None and axis == 0:
                value = 1
            if value is None:
                value = _from_weights(index, spec, axis)
                if value is not None:
                    notes.append(f"input {spec.name!r}: dimension {axis} is {value}, as its weights need")
            if value is None:
                label = f"dimension {axis} ({dim or 'no name'}) is dynamic"
                example = "x".join(
                    str(d) if isinstance(d, int) else ("1" if i == 0 else "N") for i, d in enumerate(shape)
                )
                raise _unknown(spec, label, f"{spec.name}:{example}")
            settled.append(value)
        may_batch &= bool(settled) and settled[0] == 1
        specs.append(replace(spec, shape=tuple(settled)))
    return SettledInputs(tuple(specs), may_batch, tuple(notes))


def _unknown(spec: TensorSpec, label: str, example: str) -> ModelError:
    return ModelError(
        f"the shape of input {spec.name!r} is not known", got=label,
        expected="one number for every dimension but the batch", hint=f"give it with --shapes {example}",
    )  # fmt: skip


def _check_overrides(
    inputs: Sequence[TensorSpec], dims: Mapping[str, int], input_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    names = [spec.name for spec in inputs]
    symbols = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    for what, given, allowed in (("input", input_shapes, names), ("dynamic dimension", dims, symbols)):
        for name in given:
            if name not in allowed:
                near = near_match(name, allowed)
                raise ConfigError(
                    f"the model has no {what} {name!r}", expected="one of " + (", ".join(sorted(allowed)) or "none"),
                    hint=f"did you mean {near!r}?" if near else None,
                )  # fmt: skip
    known = dict(dims)
    for spec in inputs:
        given_shape = input_shapes.get(spec.name)
        if given_shape is None or spec.shape is None:
            continue
        fits = len(given_shape) == len(spec.shape) and all(
            axis == 0 or not isinstance(dim, int) or dim == size
            for axis, (dim, size) in enumerate(zip(spec.shape, given_shape, strict=True))
        )
        if not fits:
            raise ConfigError(
                f"the shape given for input {spec.name!r} contradicts the model", got=_text(given_shape),
                expected=_text(spec.shape), hint="export the model with dynamic axes to change a fixed size",
            )  # fmt: skip
        for dim, size in zip(spec.shape, given_shape, strict=True):
            if isinstance(dim, str) and known.setdefault(dim, size) != size:
                raise ConfigError(f"dimension {dim!r} is given two sizes", got=f"{known[dim]} and {size}")
    for name, sizes in [*((name, (size,)) for name, size in known.items()), *input_shapes.items()]:
        if any(size < 1 for size in sizes):
            raise ConfigError(f"a size given for {name!r} is below 1", got=_text(sizes), expected="at least 1")
    return known


def _text(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in shape)


def _from_weights(index: GraphIndex, spec: TensorSpec, axis: int) -> int | None:
    """Size that the layers fed by an input need: channels of a convolution, features of a matrix product."""
    rank = len(spec.shape or ())
    sizes: set[int] = set()
    for node in index.consumers.get(spec.name, ()):
        if len(node.input) < 2 or node.input[0] != spec.name:
            continue
        weight = index.shape(node.input[1]) if node.input[1] in index.initializers else None
        if weight is None:
            continue
        if node.op_type == "Conv" and axis == 1:
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            sizes.add(int(weight[1] or 0) * int(groups))
        elif node.op_type == "ConvTranspose" and axis == 1:
            sizes.add(int(weight[0] or 0))
        elif node.op_type == "MatMul" and axis == rank - 1 and len(weight) >= 2:
            sizes.add(int(weight[-2] or 0))
        elif node.op_type == "Gemm" and axis == 1:
            flags = {attribute.name: int(attribute.i) for attribute in node.attribute}
            if not flags.get("transA"):
                sizes.add(int(weight[1 if flags.get("transB") else 0] or 0))
    return sizes.pop() if len(sizes) == 1 else None


def impose_shapes(proto: ModelProto, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Write sizes into a model's inputs, in place; what was known of other tensors' shapes is forgotten.

    Args:
        proto: Model to change.
        shapes: Sizes by input name, batch first; None leaves a size as the model declares it.

    Raises:
        ConfigError: If an input is not there, has another rank, or has another size already.
    """
    if not shapes:
        return
    values = {value.name: value for value in proto.graph.input}
    for name, sizes in shapes.items():
        if name not in values:
            near = near_match(name, values)
            raise ConfigError(
                f"the model has no input {name!r}", expected="one of " + (", ".join(sorted(values)) or "none"),
                hint=f"did you mean {near!r}?" if near else None,
            )  # fmt: skip
        tensor = values[name].type.tensor_type
        declared = TensorSpec.of(values[name]).shape
        if declared is None:
            declared = (None,) * len(sizes)
            for _ in sizes:
                tensor.shape.dim.add()
        if len(declared) != len(sizes) or any(
            size is not None and isinstance(dim, int) and dim != size for dim, size in zip(declared, sizes, strict=True)
        ):
            raise ConfigError(
                f"the shape given for input {name!r} contradicts the model", got=_text(sizes), expected=_text(declared),
                hint="export the model with dynamic axes to change a fixed size",
            )  # fmt: skip
        for dim, size in zip(tensor.shape.dim, sizes, strict=True):
            if size is not None:
                dim.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]


def set_input_shapes(proto: ModelProto, specs: Sequence[TensorSpec], *, dynamic_batch: bool) -> None:
    """Write settled shapes into a model, in place; what was known of other tensors' shapes is forgotten.

    Args:
        proto: Model to change.
        specs: From `settle_inputs`.
        dynamic_batch: Whether the first axis of each input becomes `BATCH`.
    """
    by_name = {spec.name: spec for spec in specs}
    for value in proto.graph.input:
        spec = by_name.get(value.name)
        if spec is None or spec.shape is None:
            continue
        tensor = value.type.tensor_type
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for axis, dim in enumerate(spec.shape):
            if axis == 0 and dynamic_batch:
                tensor.shape.dim.add(dim_param=BATCH)
            else:
                tensor.shape.dim.add(dim_value=int(dim or 0))
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
