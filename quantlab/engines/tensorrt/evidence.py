"""What shows the precision of a finished engine: the probe written beside it, and its run where a GPU is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from quantlab.degradation import Degradation, DegradationCode
from quantlab.engines.artifact import Made
from quantlab.engines.confirmation import confirm
from quantlab.engines.fingerprint import fingerprint
from quantlab.engines.probe import load_probe, make_probe, save_probe
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.graphs import GraphProof
from quantlab.engines.tensorrt.inspector import describe, parse_inspection
from quantlab.engines.tensorrt.profiles import NetworkInput, Profiles
from quantlab.errors import (
    BackendUnavailable,
    ConfigError,
    EngineMismatch,
    MeasurementError,
    OutputError,
    QuantlabError,
)
from quantlab.files import sha256_file
from quantlab.graph.prepare import Prepared
from quantlab.precision import Precision


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
    path: Path, prepared: Prepared, own: ModelProto | None, profiles: Profiles, inputs: Sequence[NetworkInput]
) -> ProbeFile:
    """Make a probe that the engine's first profile takes, and write it.

    Args:
        path: File to write.
        prepared: The FP32 model.
        own: The graph of the engine, if its types differ from those of the model.
        profiles: Shapes that the engine takes.
        inputs: Inputs of the network.

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
        save_probe(path, make_probe(prepared.model, own, input_shapes=shapes, threads=1))
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
    found = None
    try:
        with TensorRTEngine(made.path, plugins=plugins) as engine:
            times = None
            if probe.path is not None:
                loaded = load_probe(probe.path)
                found = fingerprint(loaded, loaded.run(engine.run))
                times = engine.profile(next(loaded.feeds()))
            layers = parse_inspection(engine.inspect(), times)
    except (EngineMismatch, MeasurementError, BackendUnavailable, ConfigError) as error:
        reason = f"{error.what}: {error.got}" if error.got else error.what
        message = f"{made.name}: the engine could not be run where it was built, so that nothing confirms it: {reason}"
        told = Degradation(DegradationCode.PRECISION_NOT_PROVED, message)
        text = f"{made.proof}; could not be run here: {reason}"
        return dataclasses.replace(made, proof=text, degradations=(*made.degradations, told))
    proved, text = confirm(requested, proof.proof, found, layers)
    record = dataclasses.replace(made.engine, layers=describe(layers)) if made.engine is not None else None
    parts = (text, proof.text if proof.proof is None else "", probe.note)
    return dataclasses.replace(made, proved=proved, proof="; ".join(filter(None, parts)), engine=record)
