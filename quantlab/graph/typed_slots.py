"""Which inputs and outputs of a node may hold 16-bit floating-point numbers: asked of ONNX's operator schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from quantlab.graph.index import GraphIndex
from quantlab.graph.tensors import subgraphs

_TYPE_NAMES: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}

_PARAMETERS: dict[str, tuple[int, ...]] = {"Resize": (1, 2)}
"""Float inputs that may be 16 bits by the schema, but say where values are: they stay float32."""

_NO_BFLOAT16 = frozenset({"HardSwish", "Mish", "ConvTranspose", "GRU"})
"""Operators whose BF16 form TensorRT refuses, in its parser or, of a ConvTranspose, when it builds the engine."""

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""They stay float32, between casts: TensorRT's kernels are right with float32 scales (docs/adr/011-typed-graphs.md)."""

_FLOAT_ONLY = {
    "ConstantOfShape": "its output's type is that of an attribute",
    "EyeLike": "its output's type is that of an attribute",
    "CastLike": "its output's type is that of another tensor",
    "RandomNormal": "it makes random numbers",
    "RandomNormalLike": "it makes random numbers",
    "RandomUniform": "it makes random numbers",
    "RandomUniformLike": "it makes random numbers",
    "Bernoulli": "it makes random numbers",
    "Multinomial": "it makes random numbers",
    "GridSample": "its grid is coordinates, and TensorRT wants it to have the type of the image",
}

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Slots:
    """The float32 inputs and outputs of a node.

    Attributes:
        inputs: Positions of float32 inputs that may hold 16 bits.
        outputs: Positions of float32 outputs that may.
        obstacle: Why none may, in words; None if some may, or the node has no float32 tensors, or is half of a pair.
    """

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    obstacle: str | None = None

    @property
    def convertible(self) -> bool:
        """Whether the node can compute in 16 bits."""
        return bool(self.inputs or self.outputs)


def find_slots(node: NodeProto, index: GraphIndex, opset: int, half_type: int) -> Slots:
    """The slots of a node whose tensors may become 16 bits.

    Args:
        node: A node of the graph.
        index: Its index, with inferred types.
        opset: Version of the default operator set.
        half_type: ``TensorProto.FLOAT16`` or ``BFLOAT16``.
    """
    inputs = [i for i, name in enumerate(node.input) if name and index.is_float(name)]
    outputs = [i for i, name in enumerate(node.output) if name and index.is_float(name)]
    unknown = [name for name in (*node.input, *node.output) if name and not index.elem_type(name)]
    if unknown:
        return Slots(obstacle=f"a type is not known ({unknown[0]})")
    if (not inputs and not outputs) or (node.op_type in QUANTIZERS and node.domain in STANDARD_DOMAINS):
        return Slots()
    obstacle = _obstacle(node, half_type)
    if obstacle is not None:
        return Slots(obstacle=obstacle)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return Slots(obstacle=f"opset {opset} has no operator {node.op_type}")
    wanted = _TYPE_NAMES[half_type]
    allowed = {
        constraint.type_param_str for constraint in schema.type_constraints if wanted in constraint.allowed_type_strs
    }
    parameters = _PARAMETERS.get(node.op_type, ())
    free_inputs = {i for i in inputs if _formal(schema.inputs, i) in allowed and i not in parameters}
    free_outputs = {i for i in outputs if _formal(schema.outputs, i) in allowed}
    if not free_inputs and not free_outputs:
        name = wanted.removeprefix("tensor(").removesuffix(")")
        return Slots(obstacle=f"{node.op_type} has no {name} form in opset {opset}")
    return Slots(frozenset(free_inputs), frozenset(free_outputs))


def _obstacle(node: NodeProto, half_type: int) -> str | None:
    if node.domain not in STANDARD_DOMAINS:
        return f"operator {node.op_type} is of the domain {node.domain}"
    if next(subgraphs(node), None) is not None:
        return f"{node.op_type} has a graph of its own, which is not converted"
    if half_type == TensorProto.BFLOAT16 and node.op_type in _NO_BFLOAT16:
        return f"TensorRT has no bfloat16 form of {node.op_type}"
    return _FLOAT_ONLY.get(node.op_type)


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], position: int) -> str:
    """Type of a formal parameter; the last one of a variadic operator repeats."""
    if position < len(parameters):
        return str(parameters[position].type_str)
    last = parameters[-1] if parameters else None
    variadic = last is not None and last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return str(last.type_str) if last is not None and variadic else ""
