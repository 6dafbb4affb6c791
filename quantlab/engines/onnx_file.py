"""The ONNX file of a variant, for the backends whose engine files are ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from quantlab.engines.protocol import EngineBuilder
from quantlab.engines.sidecar import sidecar_path
from quantlab.engines.variant import Variant, variant_name
from quantlab.errors import BackendUnavailable
from quantlab.files import remove_file
from quantlab.graph.metadata import with_preprocess
from quantlab.graph.model import save_model
from quantlab.graph.qdq import Quantized


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFile:
    """A file that was just written.

    Attributes:
        name: Name of the variant.
        path: The file.
        proto: What is in it.
        size_bytes: With its external data.
    """

    name: str
    path: Path
    proto: ModelProto
    size_bytes: int


def check_supported(builder: EngineBuilder, variant: Variant) -> None:
    """Refuse what a builder does not build.

    Raises:
        BackendUnavailable: With its reason.
    """
    reason = builder.supports(variant)
    if reason is not None:
        raise BackendUnavailable(f"cannot build {variant.precision}", got=reason)


@contextmanager
def written(backend: str, variant: Variant, graph: Quantized, folder: Path) -> Iterator[OnnxFile]:
    """Write a variant's graph; a sidecar must vouch for it before the block ends.

    If the block fails, the file is removed: an engine that nothing vouches for must not be found.

    Args:
        backend: Name of the backend, for that of the variant.
        variant: The variant.
        graph: Its graph.
        folder: Where to.

    Raises:
        OutputError: If it cannot be written.
    """
    name = variant_name(backend, variant.precision, variant.method, len(graph.excluded), variant.recovered)
    path = folder / f"{name}.onnx"
    proto = with_preprocess(graph.proto, variant.table)
    remove_file(sidecar_path(path))
    files = save_model(proto, path, variant.model)
    try:
        yield OnnxFile(name, path, proto, sum(file.stat().st_size for file in files))
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
