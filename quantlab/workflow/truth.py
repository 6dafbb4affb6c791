"""The truth table: one quantized graph in several runtimes, from a bare Q/DQ file or from engine files."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from quantlab.engines.protocol import Engine
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.tensorrt.flavour import FLAVOURS
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, ConfigError, EngineBuildError, EngineMismatch, ModelError, QuantlabError
from quantlab.files import write_text
from quantlab.graph.checks import has_qdq
from quantlab.graph.existing import ExistingPolicy, check_existing
from quantlab.graph.metadata import stated_recovery
from quantlab.graph.model import Model, TensorSpec, load_model, model_inputs, model_outputs
from quantlab.graph.prepare import Prepared, prepare, prepare_partially
from quantlab.graph.proof import prove
from quantlab.graph.session import holds_fp8
from quantlab.graph.targets import ONNXRUNTIME, TENSORRT
from quantlab.harness.origin import SAME_WEIGHT_DB, foreign_weights
from quantlab.harness.truth import Runtime, TruthSettings, measure_truth
from quantlab.harness.truth_record import Judgement, Truth
from quantlab.precision import Precision
from quantlab.progress import Narrator
from quantlab.reports import render
from quantlab.workflow.build import BACKENDS, builder_for
from quantlab.workflow.compare import find_engines
from quantlab.workflow.sources import DataNeeds, DataRequest, open_data

DEFAULT_SAMPLES = 64
"""Samples that are taken if no number is asked for: float64 takes seconds for each."""

_Shape = tuple[int | str | None, ...] | None
_QUANTIZED = frozenset({Precision.INT8, Precision.INT8_FP16, Precision.INT8_WEIGHTS, Precision.FP8})


def parse_backends(text: str) -> tuple[str, ...]:
    """Backends of a comma-separated list, without repeats.

    Raises:
        ConfigError: If the list is empty, or names something else.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("--across names no backend", expected=f"for example {','.join(BACKENDS[:2])}")
    for name in names:
        try:
            builder_for(name)
        except BackendUnavailable:  # becomes a row of the table
            continue
    return names


def across_backends(
    path: Path,
    original: Path | None,
    backends: Sequence[str],
    request: DataRequest,
    settings: TruthSettings,
    narrator: Narrator,
) -> Truth:
    """Run a Q/DQ file, as it is, in several backends.

    Each backend builds an engine of it in a temporary folder with the policy ``keep``: nothing is simplified, and
    nothing is quantized that is not. A backend that is missing or refuses the graph becomes a row that says so,
    unless none is left.

    Args:
        path: The Q/DQ model.
        original: The floating-point model it was made from.
        backends: Names, checked by `parse_backends`.
        request: Data; `DEFAULT_SAMPLES` of them unless it says how many.
        settings: Batch size and threads.
        narrator: Told of progress.

    Raises:
        ConfigError: If there is no such backend, or the preprocessing is wrong.
        ModelError: If a model cannot be used, or the first holds no Q/DQ pairs.
        EngineMismatch: If the original has other inputs or outputs.
        BackendUnavailable: If no backend can be had here.
        EngineBuildError: If none can, and one refused the graph.
        DataError: If the data cannot be read or do not fit.
    """
    prepared = as_written(path)
    source = _original(original, prepared.model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runtimes = []
        for backend in backends:
            runtime = _build(prepared, backend, folder / backend, settings.threads, narrator)
            _keep_open(stack, runtime.engine)
            narrator.say(f"{backend}: {_shown(runtime)}")
            runtimes.append(runtime)
        _check_any(runtimes)
        dataset, _ = open_data(DataNeeds.of_model(prepared.model), _limited(request), narrator)
        truth = measure_truth(prepared.model, source, runtimes, dataset, settings, narrator)
    return _with_origin(truth, source, prepared.model)


def across_engines(
    paths: Sequence[Path],
    original: Path | None,
    request: DataRequest,
    settings: TruthSettings,
    narrator: Narrator,
) -> Truth:
    """Compare engine files of one quantized graph with what that graph says.

    One of them must be an ONNX file with the Q/DQ pairs in it: it is the graph. Engines that are not quantized are left
    out; an FP32 ONNX file among them stands for the original if no other is named.

    Raises:
        ConfigError: If there is no engine, or none that holds the graph.
        EngineMismatch: If the engines were not made from one graph.
        ModelError: As for `across_backends`.
        DataError: As for `across_backends`.
    """
    found = [(path, read_sidecar(path)) for path in find_engines(paths)]
    quantized = [(path, sidecar) for path, sidecar in found if sidecar.requested in _QUANTIZED]
    floats = [path for path, sidecar in found if sidecar.requested is Precision.FP32 and path.suffix == ".onnx"]
    graphs = [path for path, _ in quantized if path.suffix == ".onnx" and has_qdq(load_model(path).proto)]
    if not graphs:
        raise ConfigError(
            "none of the engines holds a quantized ONNX graph to compare with",
            got=", ".join(sidecar.name for _, sidecar in found),
            expected="one built for onnxruntime, onnxruntime-cuda or openvino among them",
            hint="build the same variant with --backend onnxruntime too, or name the .qdq.onnx file",
        )
    _check_one_graph([sidecar for _, sidecar in quantized])
    graph = as_written(graphs[0])
    for path in graphs[1:]:
        if not _same_graph(load_model(path), load_model(graphs[0])):
            raise EngineMismatch(
                f"{path.name} holds another graph than {graphs[0].name}",
                expected="one quantized graph in several runtimes",
                hint="build both with the same --target, or name the .qdq.onnx file and --across backends",
            )
    named = original or next(iter(floats), None)
    source = _original(named, graph.model)
    with ExitStack() as stack:
        runtimes = []
        for path, sidecar in quantized:
            runtime = _load(path, sidecar, settings.threads, narrator)
            _keep_open(stack, runtime.engine)
            runtimes.append(runtime)
        _check_any(runtimes)
        dataset, _ = open_data(DataNeeds.of_model(graph.model), _limited(request), narrator)
        truth = measure_truth(graph.model, source, runtimes, dataset, settings, narrator)
    return _with_origin(truth, source, graph.model)


def write_truth(folder: Path, truth: Truth) -> tuple[Path, ...]:
    """Write ``truth.csv``, ``.md`` and, last, ``.json``.

    Raises:
        OutputError: If a file cannot be written.
    """
    paths = (folder / "truth.json", folder / "truth.csv", folder / "truth.md")
    write_text(paths[1], render(truth, "csv"))
    write_text(paths[2], render(truth, "markdown"))
    write_text(paths[0], truth.to_json())
    return paths


def as_written(path: Path) -> Prepared:
    """A quantized model that nothing was done to, but names and shapes.

    Raises:
        ModelError: If it cannot be used, or holds no Q/DQ pairs.
    """
    model = load_model(path)
    if not has_qdq(model.proto):
        raise ModelError(
            f"model {path} holds no QuantizeLinear or DequantizeLinear nodes",
            expected="a Q/DQ model",
            hint="name the .qdq.onnx file; the floating-point model is for --model",
        )
    check_existing(model, ExistingPolicy.KEEP)
    return dataclasses.replace(prepare_partially(model, "it is run as it is written"), degradations=())


def stated_precision(model: Model) -> Precision:
    """The precision that a quantized graph states, for its builders: INT8, INT8_WEIGHTS or FP8.

    16-bit floats between the layers are in the graph already and are not asked for.
    """
    found = prove(model).precision
    if found in (Precision.INT8_WEIGHTS, Precision.FP8):
        return found
    return Precision.FP8 if holds_fp8(model.proto) else Precision.INT8


def _build(prepared: Prepared, backend: str, folder: Path, threads: int, narrator: Narrator) -> Runtime:
    target = TENSORRT if backend in FLAVOURS else ONNXRUNTIME
    precision = stated_precision(prepared.model)
    variant = Variant(prepared, backend, precision, target, existing=ExistingPolicy.KEEP)
    folder.mkdir()
    try:
        builder = builder_for(backend, None, narrator)
        path = builder.build(variant, folder)
        return Runtime(backend, builder.load(path, threads))
    except BackendUnavailable as error:
        return Runtime(backend, None, _reason(error))
    except ConfigError:
        raise
    except QuantlabError as error:
        return Runtime(backend, None, f"it refused the graph: {_reason(error)}", Judgement.FAILED)


def _load(path: Path, sidecar: Sidecar, threads: int, narrator: Narrator) -> Runtime:
    try:
        return Runtime(sidecar.name, builder_for(sidecar.backend, None, narrator).load(path, threads))
    except BackendUnavailable as error:
        return Runtime(sidecar.name, None, _reason(error))


def _shown(runtime: Runtime) -> str:
    """What was proved of it; what was not is a degradation, and told as one."""
    if runtime.engine is None:
        return runtime.reason
    sidecar = runtime.engine.sidecar
    return sidecar.proof if sidecar.proved is not None else "loaded; its precision is not proved"


def _check_any(runtimes: Sequence[Runtime]) -> None:
    """Refuse to compute references for nobody.

    Raises:
        BackendUnavailable: If no runtime can be had here.
        EngineBuildError: If none can, and one refused the graph.
    """
    if any(runtime.engine is not None for runtime in runtimes):
        return
    refused = any(runtime.judgement is Judgement.FAILED for runtime in runtimes)
    raise (EngineBuildError if refused else BackendUnavailable)(
        "none of the runtimes can run the graph",
        got="; ".join(f"{runtime.name}: {runtime.reason}" for runtime in runtimes),
        expected="one at least",
        hint="quantlab doctor says what is installed",
    )


def _with_origin(truth: Truth, original: Model | None, graph: Model) -> Truth:
    """The table with a warning in front if the original does not look like the one."""
    if original is None:
        return truth
    if steps := stated_recovery(graph.metadata):
        note = f"the graph is that of a recovered model (by {', '.join(steps)}); its weights are not those of the model"
        return dataclasses.replace(truth, notes=(note, *truth.notes))
    found = foreign_weights(original, graph)
    if found is not None and 2 * found[0] > found[1]:  # preparation folds layers into weights, so it is looked at, too
        with contextlib.suppress(QuantlabError):
            looked_at = (found, foreign_weights(prepare(original).model, graph) or found)
            found = min(looked_at, key=lambda one: one[0] / one[1])
    if found is None:
        note = f"no quantized weight has its name in {truth.model}: whether the graph was made from it is not known"
    elif 2 * found[0] > found[1]:
        note = (
            f"{truth.model} may not be the model that the graph was made from: {found[0]:,} of {found[1]:,} quantized "
            f"weights are not near its own ({SAME_WEIGHT_DB:g} dB); if so, distances from the original mean nothing, "
            "nor does what is said of quantization"
        )
    else:
        return truth
    return dataclasses.replace(truth, notes=(note, *truth.notes))


def _keep_open(stack: ExitStack, engine: Engine | None) -> None:
    if isinstance(engine, AbstractContextManager):  # it holds a GPU's memory
        stack.enter_context(engine)


def _reason(error: QuantlabError) -> str:
    got = f": {error.got}" if error.got is not None else ""
    return f"{error.what}{got}"


def _original(path: Path | None, graph: Model) -> Model | None:
    """The floating-point model, if it has the inputs and outputs of the graph."""
    if path is None:
        return None
    model = load_model(path)
    if has_qdq(model.proto):
        raise ModelError(
            f"model {path} holds Q/DQ nodes itself", expected="the floating-point model that the graph was made from"
        )
    for what, mine, theirs in (
        ("inputs", model_inputs(graph.proto), model_inputs(model.proto)),
        ("outputs", model_outputs(graph.proto), model_outputs(model.proto)),
    ):
        if not _alike({spec.name: spec.shape for spec in mine}, {spec.name: spec.shape for spec in theirs}):
            raise EngineMismatch(
                f"model {path.name} has other {what} than the quantized graph",
                got=", ".join(sorted(map(_end, theirs))),
                expected=", ".join(sorted(map(_end, mine))),
                hint="name the model that the graph was made from",
            )
    return model


def _alike(mine: Mapping[str, _Shape], theirs: Mapping[str, _Shape]) -> bool:
    """Whether names are the same, and sizes that both know; batches may be of another size."""
    if mine.keys() != theirs.keys():
        return False
    for name, left in mine.items():
        right = theirs[name]
        if left is None or right is None:
            continue
        if len(left) != len(right):
            return False
        if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(left[1:], right[1:], strict=True)):
            return False
    return True


def _end(spec: TensorSpec) -> str:
    return spec.name if spec.shape is None else f"{spec.name} [{','.join(str(size or '?') for size in spec.shape)}]"


def _check_one_graph(sidecars: Sequence[Sidecar]) -> None:
    first = sidecars[0]
    for sidecar in sidecars[1:]:
        for what, got, expected in (
            ("model", sidecar.model_sha256, first.model_sha256),
            ("prepared graph", sidecar.graph_sha256, first.graph_sha256),
            ("precision", sidecar.requested, first.requested),
            ("calibration table", sidecar.table_sha256, first.table_sha256),
            ("range method", sidecar.method, first.method),
            ("target", sidecar.target, first.target),
            ("set of excluded layers", sidecar.excluded, first.excluded),
            ("recovery", _recovery(sidecar), _recovery(first)),
        ):
            if got != expected:
                raise EngineMismatch(
                    f"engine {sidecar.name} has another {what} than {first.name}",
                    got=got or "none",
                    expected=expected or "none",
                    hint="--across compares one quantized graph in several runtimes: name the engines of one",
                )


def _recovery(sidecar: Sidecar) -> str | None:
    return sidecar.recovery.sha256 if sidecar.recovery is not None else None


def _same_graph(one: Model, two: Model) -> bool:
    left, right = (bytes(model.proto.graph.SerializeToString(deterministic=True)) for model in (one, two))
    return left == right


def _limited(request: DataRequest) -> DataRequest:
    return request if request.limit is not None else dataclasses.replace(request, limit=DEFAULT_SAMPLES)
