"""What shows the precision of a finished engine: the probe written beside it, and its run where a GPU is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.engines.artifact import Made, not_proved
from quantlab.engines.confirmation import UNTYPED, confirm
from quantlab.engines.fingerprint import Fingerprint, fingerprint
from quantlab.engines.probe import Probe, load_probe, prepared_probe, save_probe
from quantlab.engines.protocol import Arrays
from quantlab.engines.record import EngineRecord
from quantlab.engines.sidecar import Sidecar
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.graphs import GraphProof
from quantlab.engines.tensorrt.inspector import LayerSummary, describe, parse_inspection
from quantlab.engines.tensorrt.profiles import NetworkInput, Profiles
from quantlab.errors import (
    BackendUnavailable,
    ConfigError,
    EngineMismatch,
    MeasurementError,
    OutputError,
    QuantlabError,
)
from quantlab.files import is_file, sha256_file
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared
from quantlab.graph.proof import Proof
from quantlab.precision import Precision

_BATCH_ERRORS, _BATCH_ROUNDING = 4.0, 1e-4
"""How far a batch may be from its samples one by one: in errors of these, and beyond them as a share of the outputs."""


@dataclass(frozen=True, slots=True)
class ProbeFile:
    """The probe of an engine.

    Attributes:
        path: The file; None if none could be made.
        sha256: Its hash.
        note: Why there is none.
    """

    path: Path | None
    sha256: str | None
    note: str = ""


def write_probe(
    path: Path,
    prepared: Prepared,
    own: ModelProto | None,
    profiles: Profiles,
    inputs: Sequence[NetworkInput],
    source: Model | None = None,
) -> ProbeFile:
    """Make a probe that the engine's first profile takes, and write it.

    Args:
        path: File to write.
        prepared: The FP32 model.
        own: The graph of the engine, if its types differ from those of the model.
        profiles: Shapes that the engine takes.
        inputs: Inputs of the network.
        source: The model that ``own`` refers to for external weights; None for ``prepared``.

    Raises:
        OutputError: If it cannot be written.
    """
    if not prepared.model.proto.graph.node:
        return ProbeFile(None, None, "no probe: the network is known to TensorRT alone")
    if any(one.values for one in inputs):
        return ProbeFile(None, None, "no probe: an input's contents are sizes, and random ones mean nothing")
    first = profiles[0]
    one = all(shapes.minimum[:1] in ((), (1,)) for shapes in first.values())
    shapes = {name: ((1, *p.optimum[1:]) if one else p.optimum) for name, p in first.items() if p.optimum}
    try:
        save_probe(path, prepared_probe(prepared, own, input_shapes=shapes, threads=1, source=source))
    except OutputError:
        raise
    except QuantlabError as error:  # a model that this CPU cannot run has none
        return ProbeFile(None, None, f"no probe: {error.what}" + (f" ({error.got})" if error.got else ""))
    return ProbeFile(path, sha256_file(path))


def confirmed(made: Made, requested: Precision, proof: GraphProof, probe: ProbeFile, plugins: tuple[Path, ...]) -> Made:
    """Run a finished engine, whose sidecar is written, and add what its outputs and the inspector show.

    An engine that cannot be run on the GPU that is here keeps what its graph proves; that is a degradation.

    Args:
        made: The engine.
        requested: Precision asked for.
        proof: What the graph says.
        probe: What to run it on.
        plugins: Libraries that it uses.
    """
    try:
        with TensorRTEngine(made.path, plugins=plugins) as engine:
            found, layers, told = _run(engine, made.path, probe.path)
    except (EngineMismatch, MeasurementError, BackendUnavailable, ConfigError) as error:
        failed, text = _not_run(made.name, made.proof, error)
        return dataclasses.replace(made, proof=text, degradations=(*made.degradations, failed))
    proved, text = _judge(requested, proof, found, layers, probe.note, made.engine)
    record = dataclasses.replace(made.engine, layers=describe(layers)) if made.engine is not None else None
    degradations = (*made.degradations, *told)
    return dataclasses.replace(made, proved=proved, proof=text, engine=record, degradations=degradations)


def confirm_loaded(engine: TensorRTEngine, path: Path) -> None:
    """Run a loaded engine that has never been run, and let its `sidecar` say what that shows; the file stays as it is.

    It is for engines that were built where there was no GPU, or where they did not run. The sidecar in memory says
    what was proved and how, and its degradations are those that remain. One that was run already is left alone.

    Args:
        engine: The engine.
        path: Its file, beside which the probe lies.

    Raises:
        EngineMismatch: If the probe is damaged, not the one of the sidecar, or does not fit the engine.
    """
    sidecar = engine.sidecar
    record = sidecar.engine
    if record is None or record.layers:
        return
    probe = _recorded_probe(path, record)
    others = [one for one in sidecar.degradations if one.code is not DegradationCode.PRECISION_NOT_PROVED]
    try:
        found, layers, told = _run(engine, path, probe.path)
    except MeasurementError as error:
        failed, text = _not_run(sidecar.name, sidecar.proof, error)
        degradations = merge_degradations((*sidecar.degradations, failed))
        engine.state(dataclasses.replace(sidecar, proof=text, degradations=degradations))
        return
    proved, text = _judge(sidecar.requested, _stated(sidecar, record), found, layers, probe.note, record)
    if proved is not sidecar.requested:
        others.append(not_proved(sidecar.name, sidecar.requested, proved, text))
    record = dataclasses.replace(record, layers=describe(layers))
    degradations = merge_degradations((*others, *told))
    engine.state(dataclasses.replace(sidecar, proved=proved, proof=text, degradations=degradations, engine=record))


def _run(
    engine: TensorRTEngine, path: Path, probe: Path | None
) -> tuple[Fingerprint | None, LayerSummary, tuple[Degradation, ...]]:
    """What a run on the probe shows, None without one; what the inspector says, with times if there is a probe.

    And a degradation if the samples give other results in a batch.
    """
    if probe is None:
        return None, parse_inspection(engine.inspect(), None), ()
    loaded = load_probe(probe)
    single = loaded.run(engine.run)
    found = fingerprint(loaded, single)
    told = _batch_disagreement(engine, path, loaded, single, found.relative_error)
    times = engine.profile(next(loaded.feeds()))
    return found, parse_inspection(engine.inspect(), times), told


def _batch_disagreement(
    engine: TensorRTEngine, path: Path, probe: Probe, single: Arrays, error: float
) -> tuple[Degradation, ...]:
    """Whether the largest batch gives what its samples give one by one, up to rounding in other kernels.

    TensorRT-RTX 1.6.1 compiles kernels for each set of shapes, and has been seen to be right only for the set that an
    engine runs first (docs/gpu-results.md); so it is asked whether those are to blame.

    Args:
        engine: The engine.
        path: Its file.
        probe: Its probe; nothing is compared if its calls are not of one sample.
        single: Results of the calls, stacked.
        error: Relative error of these.
    """
    n = min((shape[0] for shape in engine.interface.largest(0).values() if shape), default=1)
    if n < 2 or not math.isfinite(error) or any(values.shape[1:2] != (1,) for values in probe.inputs.values()):
        return ()
    relative = _batch_difference(engine, probe, single, n)
    allowed = _BATCH_ERRORS * error + _BATCH_ROUNDING
    if relative <= allowed:
        return ()
    message = (
        f"{engine.sidecar.name}: in a batch of {n}, samples give other results than one by one: they differ by "
        f"{relative:.1e} of the outputs, and the error of one by one is {error:.1e}"
    )
    if engine.specializes:
        message += _without_specialization(path, probe, n, allowed)
    return (Degradation(DegradationCode.BATCH_DISAGREES, message),)


def _without_specialization(path: Path, probe: Probe, n: int, allowed: float) -> str:
    """Whether a batch gives what its samples give if no kernels are compiled for its shape, in words."""
    try:
        with TensorRTEngine(path, specialize=False) as engine:
            relative = _batch_difference(engine, probe, probe.run(engine.run), n)
    except QuantlabError as error:  # as when there is no memory for a second one: the first finding stands
        return f"; whether the kernels that the library compiles for each shape do that could not be told: {error.what}"
    found = f"; with one set of kernels for all shapes they differ by {relative:.1e}"
    if relative > allowed:
        return found
    return f"{found}: the kernels that the library compiles for each shape are wrong"


def _batch_difference(engine: TensorRTEngine, probe: Probe, single: Arrays, n: int) -> float:
    """How far a batch of ``n`` is from its samples one by one, as a share of these; 0 if it cannot be told."""
    rows = np.arange(n) % probe.calls
    outputs = engine.run({name: np.ascontiguousarray(values[rows, 0]) for name, values in probe.inputs.items()})
    difference = size = 0.0
    for name in probe.sizes:
        expected = np.asarray(single[name], np.float64)[rows].reshape(n, -1)
        got = np.asarray(outputs[name], np.float64)
        if got.size != expected.size:  # an output without a batch axis
            return 0.0
        difference += float(np.sum((got.reshape(n, -1) - expected) ** 2))
        size += float(np.sum(expected**2))
    return math.sqrt(difference / size) if size > 0.0 else 0.0


def _judge(
    requested: Precision,
    proof: GraphProof,
    found: Fingerprint | None,
    layers: LayerSummary,
    note: str,
    record: EngineRecord | None,
) -> tuple[Precision | None, str]:
    """All that is known, put together; the operands of an FP32 or TF32 engine are floats if it is made from a graph."""
    is_float32 = requested in UNTYPED and record is not None and record.onnx_sha256 != ""
    proved, text = confirm(requested, proof.proof, found, layers, is_float32=is_float32)
    parts = (text, proof.text if proof.proof is None else "", note)
    return proved, "; ".join(part for part in parts if part)


def _not_run(name: str, proof: str, error: QuantlabError) -> tuple[Degradation, str]:
    """The degradation, and the proof, of an engine that does not run on the GPU that is here."""
    reason = f"{error.what}: {error.got}" if error.got else error.what
    message = f"{name}: the engine could not be run here, so that nothing confirms it: {reason}"
    return Degradation(DegradationCode.PRECISION_NOT_PROVED, message), f"{proof}; could not be run here: {reason}"


def _recorded_probe(path: Path, record: EngineRecord) -> ProbeFile:
    """The probe that the sidecar names, if it is there.

    Raises:
        EngineMismatch: If it is another one.
    """
    if record.probe is None:
        return ProbeFile(None, None, "there is no probe to run it on")
    file = path.with_name(record.probe)
    if not is_file(file):
        return ProbeFile(None, None, f"its probe {record.probe} is missing: nothing was run")
    digest = sha256_file(file)
    if digest != record.probe_sha256:
        raise EngineMismatch(
            f"probe {file} is not the one that the engine's sidecar describes",
            got=f"sha256 {digest[:16]}...",
            expected=f"sha256 {record.probe_sha256[:16]}..." if record.probe_sha256 else "no probe",
            hint="copy the probe together with its engine, or build it again",
        )
    return ProbeFile(file, digest)


def _stated(sidecar: Sidecar, record: EngineRecord) -> GraphProof:
    """What the graph says, by the sidecar of an engine that was never run: only its types can have proved anything."""
    if sidecar.requested in UNTYPED or sidecar.proved is None:
        return GraphProof(record.stated)
    return GraphProof(record.stated, Proof(sidecar.proved, record.stated, 0, 0, ()))
