"""A probe: seeded inputs with the outputs that each arithmetic would give for them, kept beside an engine file.

An engine that is run on the inputs shows by its errors in which arithmetic it really computed; `fingerprint` judges.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from quantlab.engines.emulation import (
    FP32,
    FP32_UNFUSED,
    TF32,
    TRUTH,
    Emulation,
    Run,
    Values,
    float_outputs,
    kept_values,
    open_plain,
    stride,
)
from quantlab.engines.protocol import Arrays
from quantlab.errors import EngineMismatch
from quantlab.files import write_bytes
from quantlab.graph.checks import has_qdq
from quantlab.graph.double import MAX_MULTIPLICATIONS, multiplications
from quantlab.graph.half import FORMATS
from quantlab.graph.model import Model, Optimization
from quantlab.graph.prepare import Prepared
from quantlab.graph.proof import prove
from quantlab.graph.reference import random_feed
from quantlab.graph.session import first_line
from quantlab.graph.shapes import settle_inputs
from quantlab.graph.tf32 import to_tf32
from quantlab.precision import Precision

PROBE_SCHEMA = "quantlab.probe/1"
PROBE_SUFFIX = ".probe.npz"

ENOUGH_VALUES = 256
"""Values of all outputs and calls that are aimed at; models of few outputs are called more often."""

MAX_SAMPLES = 32

_DAMAGES = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and we raise for files that are no probes."""

_NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Inputs, and what each arithmetic gives for them.

    Attributes:
        inputs: Arrays by input name; the first axis counts the calls.
        sizes: Elements in one call of each float output that is compared, by name.
        expected: float64 arrays [calls, values] by arithmetic: the kept values of all outputs, one after the other.
            ``truth`` is always there; of the others, those that could be emulated: ``fp32``, ``fp32-unfused`` (every
            operator by itself), ``tf32``, ``tf32-truncated``, ``tf32-aligned`` (in layers of suitable shapes alone),
            ``tf32-narrow-cut`` (the same, truncated in those of few channels), ``fp16``, ``fp16-float-tail`` (float32
            behind the last weighted layers), ``fp16-weights`` (nothing else rounded), the same of ``bf16``, and
            ``own``, the variant's own graph, and ``own-tf32``, the same with operands rounded instead of what it stores
            in 16 bits.
        reference: What ``truth`` was computed in: ``float64``, or ``float32 on the CPU``.
        own_precision: What the variant's own graph was proved to be; None without one, or if it is a mixture.
        notes: What could not be done, one sentence each.
    """

    inputs: Mapping[str, NDArray[np.generic]]
    sizes: Mapping[str, int]
    expected: Mapping[str, Values]
    reference: str
    own_precision: Precision | None
    notes: tuple[str, ...]

    @property
    def calls(self) -> int:
        """Number of calls."""
        return int(self.expected[TRUTH].shape[0])

    def feeds(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        """Inputs of each call."""
        for i in range(self.calls):
            yield {name: values[i] for name, values in self.inputs.items()}

    def kept(self, outputs: Arrays) -> Values:
        """The values of one call's outputs that are compared, one output after the other, as float64.

        Raises:
            EngineMismatch: If an output is missing or of another size.
        """
        return kept_values(outputs, self.sizes, self.calls)

    def run(self, run: Run) -> dict[str, NDArray[np.generic]]:
        """Call an engine on all inputs.

        Args:
            run: Takes arrays by input name, gives arrays by output name; called once a sample.

        Returns:
            Whole outputs by name, of those that are compared, stacked along a new first axis.

        Raises:
            EngineMismatch: If an output is missing or of another size.
        """
        results = []
        for feed in self.feeds():
            outputs = run(feed)
            self.kept(outputs)
            results.append(outputs)
        return {name: np.stack([np.asarray(outputs[name]) for outputs in results]) for name in self.sizes}


def probe_path(engine: Path) -> Path:
    """Path of the probe of an engine file: ``<name>.probe.npz`` beside it."""
    return engine.with_suffix(PROBE_SUFFIX)


def make_probe(
    model: Model,
    own: ModelProto | None,
    *,
    samples: int = 2,
    seed: int = 0,
    input_shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
    threads: int = 0,
) -> Probe:
    """Compute what each arithmetic gives on seeded random inputs.

    Dynamic batch axes become 1, as in preparation. More than ``samples`` calls are made while the outputs have fewer
    than `ENOUGH_VALUES` values, up to `MAX_SAMPLES` or the cost that float64 may have. Cost: four runs in float64 and
    ten in ONNX Runtime for each call; EfficientNet-Lite0 takes about 3 s a call on one core.

    Args:
        model: The prepared FP32 model.
        own: The graph of the variant if it is quantized or has 16-bit types; its external weights are the model's.
        samples: Least number of calls.
        seed: Seed of the inputs.
        input_shapes: Whole input shapes by name, where the engine does not take a batch of 1.
        threads: Threads of ONNX Runtime; 0 for all cores.

    Raises:
        ConfigError: If ``input_shapes`` do not fit the model.
        ModelError: If a shape is not known, the model does not run, or has no float outputs of a fixed size.
    """
    specs = settle_inputs(model.proto, {}, input_shapes).specs
    rng = np.random.default_rng(seed)
    feeds = [random_feed(specs, rng) for _ in range(samples)]
    plain = open_plain(model, threads, Optimization.NONE)
    n_values = sum(float_outputs(model, [plain(feed) for feed in feeds]).values())
    most = min(MAX_SAMPLES, int(MAX_MULTIPLICATIONS / max(multiplications(model.proto), 1.0)))
    further = min(most, -(-ENOUGH_VALUES // n_values)) - samples
    feeds += [random_feed(specs, rng) for _ in range(further)]
    return probe_of(model, own, feeds, threads=threads)


def prepared_probe(
    prepared: Prepared,
    own: ModelProto | None,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
    threads: int = 0,
    source: Model | None = None,
) -> Probe:
    """As `make_probe`; what does not depend on the variant is computed once for variants of one graph in a row.

    Args:
        prepared: The prepared FP32 model.
        own: As for `make_probe`.
        input_shapes: As for `make_probe`.
        threads: As for `make_probe`.
        source: The model that ``own`` refers to for external weights; None for ``prepared``.

    Raises:
        ConfigError: As for `make_probe`.
        ModelError: As for `make_probe`.
    """
    subject = _Subject(prepared.graph_sha256, tuple(sorted(input_shapes.items())), threads, prepared.model)
    return _with_own(_probe_without_own(subject), source or prepared.model, own, threads)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a probe without an own graph depends on; the model itself is known by its hash."""

    graph_sha256: str
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    threads: int
    model: Model = field(compare=False)


@lru_cache(maxsize=1)
def _probe_without_own(subject: _Subject) -> Probe:
    return make_probe(subject.model, None, input_shapes=dict(subject.input_shapes), threads=subject.threads)


def probe_of(model: Model, own: ModelProto | None, feeds: Sequence[Arrays], *, threads: int = 0) -> Probe:
    """Compute what each arithmetic gives on the inputs of given calls, all of one shape.

    Args:
        model: As for `make_probe`.
        own: As for `make_probe`.
        feeds: Arrays by input name, of each call.
        threads: Threads of ONNX Runtime; 0 for all cores.

    Raises:
        ModelError: As for `make_probe`.
    """
    plain = open_plain(model, threads, Optimization.NONE)
    sizes = float_outputs(model, [plain(feed) for feed in feeds])
    work = Emulation(model, feeds, sizes, threads)
    work.take(FP32_UNFUSED, lambda: plain)
    reference = work.take_truth()
    work.take(FP32, lambda: open_plain(model, threads))
    work.take(TF32, lambda: open_plain(model.with_proto(to_tf32(model)), threads))
    for precision in FORMATS:
        work.take_half(precision)
    inputs = {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
    probe = Probe(inputs, sizes, work.expected, reference, None, tuple(work.notes))
    return _with_own(probe, model, own, threads)


def _with_own(probe: Probe, model: Model, own: ModelProto | None, threads: int) -> Probe:
    """A probe with the variant's own graph besides, if its types differ from the model's."""
    if own is None or not is_shorter(own):
        return probe
    work = Emulation(model, list(probe.feeds()), probe.sizes, threads)
    work.take_own(model.with_proto(own))
    precision = prove(model.with_proto(own)).precision
    expected, notes = {**probe.expected, **work.expected}, (*probe.notes, *work.notes)
    return dataclasses.replace(probe, expected=expected, own_precision=precision, notes=notes)


def is_shorter(proto: ModelProto) -> bool:
    """Whether a graph is quantized or has 16-bit floats: whether its types say more than FP32 or TF32."""
    halves = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    casts = (a.i for node in proto.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to")
    return (
        has_qdq(proto)
        or any(kind in halves for kind in casts)
        or any(t.data_type in halves for t in proto.graph.initializer)
    )


def save_probe(path: Path, probe: Probe) -> None:
    """Write a probe as one ``.npz``; whole or not at all. The truth keeps float64, the rest float32.

    Raises:
        OutputError: If it cannot be written.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    kinds = {}
    for i, (name, values) in enumerate(probe.inputs.items()):
        kinds[name] = values.dtype.name
        plain = values.dtype.kind in "fiub"  # NumPy would write other types, such as bfloat16, without their name
        arrays[f"input.{i}"] = values if plain else np.ascontiguousarray(values).view(np.uint8)
    for name, expected in probe.expected.items():
        arrays[f"expected.{name}"] = expected if name == TRUTH else expected.astype(np.float32)
    meta = {
        "schema": PROBE_SCHEMA,
        "inputs": kinds,
        "sizes": dict(probe.sizes),
        "reference": probe.reference,
        "own_precision": probe.own_precision,
        "notes": list(probe.notes),
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_probe(path: Path) -> Probe:
    """Read what `save_probe` wrote.

    Raises:
        EngineMismatch: If the file is missing, damaged, or not a probe.
    """
    hint = "build the engine again"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:  # NumPy leaves damaged files open
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays["meta"].tobytes())
        if meta["schema"] != PROBE_SCHEMA:
            raise EngineMismatch(f"probe {path}", got=meta["schema"], expected=PROBE_SCHEMA, hint=hint)
        inputs = {}
        for i, (name, kind) in enumerate(meta["inputs"].items()):
            stored = arrays[f"input.{i}"]
            inputs[name] = stored if stored.dtype.name == kind else stored.view(_named_dtype(kind))
        expected = {
            name.removeprefix("expected."): values.astype(np.float64)
            for name, values in arrays.items()
            if name.startswith("expected.")
        }
        own = meta["own_precision"]
        sizes = {str(name): int(size) for name, size in meta["sizes"].items()}
        probe = Probe(
            inputs, sizes, expected, str(meta["reference"]), None if own is None else Precision(own),
            tuple(str(note) for note in meta["notes"]),
        )  # fmt: skip
        _check(probe)
    except _DAMAGES as cause:
        reason = "it does not exist" if isinstance(cause, FileNotFoundError) else first_line(cause)
        raise EngineMismatch(f"probe {path} cannot be read", got=reason, hint=hint) from cause
    return probe


def _named_dtype(name: str) -> np.dtype[np.generic]:
    import ml_dtypes

    kind: type[np.generic] = getattr(ml_dtypes, name)
    return np.dtype(kind)


def _check(probe: Probe) -> None:
    """Whether the arrays of a file fit each other.

    Raises:
        ValueError: If not.
    """
    truth = probe.expected[TRUTH]
    if truth.ndim != 2 or not truth.size:
        raise ValueError(f"the truth has shape {truth.shape}")
    n_values = sum(-(-size // stride(size, probe.calls)) for size in probe.sizes.values())
    for name, values in probe.expected.items():
        if values.shape != (probe.calls, n_values):
            raise ValueError(f"{name} has shape {values.shape} instead of {(probe.calls, n_values)}")
    for name, array in probe.inputs.items():
        if array.shape[:1] != (probe.calls,):
            raise ValueError(f"input {name!r} has {array.shape[:1]} calls instead of {probe.calls}")
