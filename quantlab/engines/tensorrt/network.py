"""Networks: from an ONNX graph, or filled by the user's own Python code."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import tempfile
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto, helper

from quantlab.documents import near_match
from quantlab.engines.tensorrt.config import Session
from quantlab.engines.tensorrt.options import Typing
from quantlab.engines.tensorrt.profiles import NetworkInput
from quantlab.errors import ConfigError, EngineBuildError
from quantlab.files import sha256_bytes, sha256_file
from quantlab.graph.model import Model, save_model
from quantlab.graph.prepare import Prepared

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""Form of the name of a function that builds a network."""

_MOST_ERRORS = 5
_LARGEST_INLINE = 1_800_000_000
"""Bytes of a graph that are handed over in memory; protobuf ends at 2 GiB."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network that is ready to be built.

    Attributes:
        native: The ``INetworkDefinition``.
        inputs: Its inputs.
        kept: What the network refers to and does not own; it must live until the build is over.
    """

    native: Any
    inputs: tuple[NetworkInput, ...]
    kept: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class NetworkFunction:
    """A function of the user's that fills a network.

    Attributes:
        reference: ``package.module:function``.
        function: Called with the empty network and the TensorRT module.
        file: Where it is defined; None if that is unknown.
        sha256: Hash of that file, or of the reference where the file is unknown.
    """

    reference: str
    function: Callable[[Any, Any], object]
    file: Path | None
    sha256: str


class _Folder:
    """A temporary folder that goes when this object does."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="quantlab-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def create_network(session: Session, typing: Typing) -> Any:
    """An empty network, strongly typed where the module distinguishes and ``typing`` asks for it."""
    flags = session.flavour.module.NetworkDefinitionCreationFlag
    strong = typing is Typing.STRONG and hasattr(flags, "STRONGLY_TYPED")
    return session.builder.create_network(1 << int(flags.STRONGLY_TYPED) if strong else 0)


def graph_sha256(proto: ModelProto, source: Model) -> str:
    """Hash of a graph as it is given to the parser; external weights through the source's hash."""
    external = source.sha256 if source.data_folder is not None else ""
    return sha256_bytes(proto.SerializeToString(deterministic=True) + external.encode())


def parse_onnx(session: Session, proto: ModelProto, source: Model, typing: Typing) -> Network:
    """Parse an ONNX graph.

    Args:
        session: Builder to parse for.
        proto: The graph; its external weights, if any, are among those of ``source``.
        source: Model that it was made from.
        typing: Whether the graph's types decide.

    Raises:
        EngineBuildError: If the parser refuses it; with the name, operator and number of each node that is at fault.
        OutputError: If a graph that is too large for memory cannot be written to a temporary folder.
    """
    native = create_network(session, typing)
    parser = session.flavour.module.OnnxParser(native, session.log.native)
    session.log.clear()
    kept: tuple[Any, ...] = (parser,)
    if source.data_folder is not None or proto.ByteSize() > _LARGEST_INLINE:
        # The parser may map the files of the weights: they stay until the build is over.
        folder = _Folder()
        kept += (folder,)
        save_model(proto, folder.path / "graph.onnx", source)
        parsed = parser.parse_from_file(os.fspath(folder.path / "graph.onnx"))
    else:
        data = proto.SerializeToString()
        kept += (data,)
        parsed = parser.parse(data)
    if not parsed:
        raise _parse_error(session, parser, proto)
    if not native.num_outputs:
        raise EngineBuildError(f"{session.flavour.product} found no output in the graph of {source.name}")
    return Network(native, network_inputs(native), kept)


def network_inputs(native: Any) -> tuple[NetworkInput, ...]:
    """Inputs of a network, as it declares them."""
    tensors = [native.get_input(i) for i in range(native.num_inputs)]
    return tuple(
        NetworkInput(one.name, tuple(int(d) if d >= 0 else None for d in one.shape), bool(one.is_shape_tensor))
        for one in tensors
    )


def _parse_error(session: Session, parser: Any, proto: ModelProto) -> EngineBuildError:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines, unknown = [], []
    for error in errors:
        node, index = str(error.node_operator()), int(error.node())
        where = f"node {error.node_name()!r} ({node}), number {index}" if node else "the graph"
        lines.append(f"{where}: {_readable(str(error.desc()))}")
        code = str(error.code()).rpartition(".")[2]
        if node and (code.startswith("UNSUPPORTED_NODE") or "Plugin not found" in str(error.desc())):
            unknown.append(node)
    shown = "; ".join(dict.fromkeys(lines[:_MOST_ERRORS])) or "; ".join(session.log.errors) or "it gave no reason"
    more = f"; and {len(lines) - _MOST_ERRORS} more" if len(lines) > _MOST_ERRORS else ""
    hint = "look at the node with quantlab inspect --lint; export the model with other operators"
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        hint = f"give a library that has {names} with --plugin, or export the model without it"
    what = f"{session.flavour.product} cannot parse {proto.graph.name or 'the model'}"
    if unknown:
        what += f": no support for {', '.join(dict.fromkeys(unknown))} as it is used"
    return EngineBuildError(what, got=shown + more, hint=hint)


def _readable(text: str) -> str:
    """A failed condition of the parser's source code, without what only its authors can use."""
    text = " ".join(text.split())
    said = re.fullmatch(r'.*&& "(.*)"', text)
    text = said.group(1) if said else text
    return "the operator, or this use of it, is not supported" if text in ("false", "") else text[:300]


def find_network_function(reference: str) -> NetworkFunction:
    """Import ``package.module:function``.

    Raises:
        ConfigError: If it is malformed, does not exist or cannot be imported.
    """
    flag = f"--network {reference}"
    if not REFERENCE.fullmatch(reference):
        raise ConfigError(f"{flag} is malformed", expected="package.module:function")
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{module_name}.".startswith(f"{cause.name}."):
            raise ConfigError(f"{flag}: importing {module_name!r} failed", got=str(cause)) from cause
        local = Path(module_name.split(".")[0])
        here = local.is_dir() or local.with_suffix(".py").is_file()
        hint = "it lies in this folder: set PYTHONPATH=." if here else "check the name, or set PYTHONPATH"
        raise ConfigError(f"{flag}: there is no Python module {module_name!r}", got=str(cause), hint=hint) from cause
    except (Exception, SystemExit) as cause:  # the user's module may raise anything
        raise ConfigError(f"{flag}: importing {module_name!r} failed", got=_where(cause)) from cause
    function = getattr(module, attribute, None)
    if not callable(function):
        near = near_match(attribute, [name for name in vars(module) if not name.startswith("_")])
        raise ConfigError(
            f"{flag}: module {module_name!r} has no function {attribute!r}",
            hint=f"did you mean {near!r}?" if near else None,
        )
    try:
        found = inspect.getsourcefile(inspect.unwrap(function)) or module.__file__
    except (TypeError, ValueError):
        found = module.__file__
    file = Path(found) if found and Path(found).is_file() else None
    return NetworkFunction(reference, function, file, sha256_file(file) if file else sha256_bytes(reference.encode()))


def fill_network(session: Session, source: NetworkFunction) -> Network:
    """Let the user's function fill a strongly typed network.

    Arrays that the function gives to layers must not be changed afterwards.

    Raises:
        EngineBuildError: If the function raises, with the line; or leaves a network without layers, inputs or outputs.
    """
    flag = f"--network {source.reference}"
    native = create_network(session, Typing.STRONG)
    session.log.clear()
    try:
        returned = source.function(native, session.flavour.module)
    except (Exception, SystemExit) as cause:  # the user's code may raise anything
        raise EngineBuildError(
            f"{flag} failed", got=_where(cause),
            expected="a function that takes an empty network and the TensorRT module, and adds layers",
            hint="see the whole traceback with --debug",
        ) from cause  # fmt: skip
    for what, count in (("layers", native.num_layers), ("inputs", native.num_inputs), ("outputs", native.num_outputs)):
        if not count:
            hints = {"outputs": "call network.mark_output(tensor)", "inputs": "call network.add_input(...)"}
            got = "; ".join(session.log.errors) or None
            hint = hints.get(what, "call the network's add_... methods")
            raise EngineBuildError(f"{flag} left a network without {what}", got=got, hint=hint)
    return Network(native, network_inputs(native), (returned,))


def _where(cause: BaseException) -> str:
    """An exception with the line it comes from."""
    frames = traceback.extract_tb(cause.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_file() and frame.filename != __file__]
    own = [frame for frame in own if "importlib" not in frame.filename]
    if isinstance(cause, SyntaxError) and cause.filename:
        return f"SyntaxError: {cause.msg} ({cause.filename}, line {cause.lineno})"
    place = f" ({own[-1].filename}, line {own[-1].lineno}: {own[-1].line})" if own else ""
    return f"{type(cause).__name__}: {cause}{place}"


def described_network(session: Session, network: Network, source: NetworkFunction) -> Prepared:
    """What stands for the source of a network made by code: a graph of its inputs and outputs, without nodes.

    Its hashes are those of the Python file; what the file imports is not in them.

    Raises:
        EngineBuildError: If an input or output is of a type that ONNX does not know.
    """
    native = network.native
    kinds = _onnx_kinds(session.flavour.module.DataType)

    def value(tensor: Any) -> Any:
        kind = kinds.get(tensor.dtype)
        if kind is None:
            raise EngineBuildError(f"tensor {tensor.name!r} has a type that cannot be run", got=str(tensor.dtype))
        try:
            sizes = [int(size) if size >= 0 else None for size in tensor.shape]
        except ValueError:  # the rank is unknown
            return helper.make_tensor_value_info(tensor.name, kind, None)
        return helper.make_tensor_value_info(tensor.name, kind, sizes)

    inputs = [value(native.get_input(i)) for i in range(native.num_inputs)]
    outputs = [value(native.get_output(i)) for i in range(native.num_outputs)]
    proto = helper.make_model(helper.make_graph([], source.reference, inputs, outputs))
    model = Model(proto, None, source.sha256, None, {})
    first = network.inputs[0].shape
    return Prepared(model, (), (), first[0] if first else None, {}, source.sha256)


def _onnx_kinds(types: Any) -> dict[Any, int]:
    names = {
        "FLOAT": TensorProto.FLOAT, "HALF": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16,
        "INT8": TensorProto.INT8, "UINT8": TensorProto.UINT8, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
        "BOOL": TensorProto.BOOL, "FP8": TensorProto.FLOAT8E4M3FN,
    }  # fmt: skip
    return {getattr(types, name): kind for name, kind in names.items() if hasattr(types, name)}
