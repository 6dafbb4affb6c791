"""Which nodes of the ONNX graph a layer of an engine was fused of, as its metadata or its name says.

TensorRT from 8.6 on and TensorRT-RTX state them as metadata, ``[ONNX Layer: a]`` each, parted by a control character.
Without it the name tells: ``a + b``, ``PWN(a, b)``, ``{ForeignNode[a...b]}``, and what a copy is for.
"""

from __future__ import annotations

import re

_STATED = re.compile(r"\[ONNX Layer: (.+?)\](?=[\x1e\x1f]|\s*\[ONNX Layer: |\s*$)", re.DOTALL)
_COPY = re.compile(r"^Reformatting CopyNode for (?:Network )?(?:Input|Output)(?: Tensor \d+)? (?:to |of |from )?")
_FOREIGN = re.compile(r"\{ForeignNode\[(.+?)(?:\.\.\.(.+?))?\]\}")
_POINTWISE = re.compile(r"\b(?:PWN|Pointwise)\(")
_NO_NODE = re.compile(r"^__my[el]|^_gemm|^\(Unnamed Layer")
_KERNEL_NUMBER = re.compile(r"_myl\d+_\d+$")
_QUANTIZING = re.compile(r"QuantizeLinear|_(?:quantized|int8|fp8)_d?q$")


def fused_nodes(name: str, metadata: object = None) -> tuple[str, ...]:
    """Names of the ONNX nodes in a layer, in its order, each once; quantize and dequantize nodes are left out.

    Args:
        name: Name of the layer, as a profiler reports it.
        metadata: ``Metadata`` of the inspector's answer; anything but text is passed over.
    """
    stated = _STATED.findall(metadata) if isinstance(metadata, str) else []
    names = stated or _parts(_KERNEL_NUMBER.sub("", _COPY.sub("", name)))
    return tuple(dict.fromkeys(part for part in names if part and not _QUANTIZING.search(part)))


def _parts(name: str) -> list[str]:
    pieces = name.split(" + ")
    if _POINTWISE.search(name) is not None:
        pieces = [_unwrapped(piece) for part in pieces for piece in part.split(", ")]
    found: list[str] = []
    for piece in map(str.strip, pieces):
        foreign = _FOREIGN.fullmatch(piece)
        if foreign is not None:
            found += [end for end in foreign.groups() if end]
        elif not _NO_NODE.match(piece):
            found.append(piece)
    return found


def _unwrapped(piece: str) -> str:
    """``PWN(PWN(a`` and ``a))`` without what is around the name."""
    bare = _POINTWISE.sub("", piece)
    unbalanced = max(bare.count(")") - bare.count("("), 0)
    stripped = bare.rstrip(")")
    return bare[: max(len(bare) - unbalanced, len(stripped))]
