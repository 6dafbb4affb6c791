"""Build: a prepared model, and a table where needed, into engine files with sidecars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantlab.calibrators.table import CalibrationTable
from quantlab.documents import near_match
from quantlab.engines.onnxruntime import NAME, OnnxRuntimeBuilder
from quantlab.engines.protocol import EngineBuilder
from quantlab.engines.sidecar import Sidecar, by_reason, read_sidecar
from quantlab.engines.tensorrt.calibration import CALIBRATED, NativeCalibration
from quantlab.engines.tensorrt.flavour import FLAVOURS, load_flavour
from quantlab.engines.tensorrt.options import BuildOptions
from quantlab.engines.variant import Variant
from quantlab.errors import BackendUnavailable, ConfigError, EngineMismatch
from quantlab.files import check_folder
from quantlab.graph.existing import ExistingPolicy, check_existing
from quantlab.graph.half import FORMATS
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import excluded_layers
from quantlab.graph.targets import TARGETS, QuantizationKind, TargetProfile
from quantlab.precision import Precision
from quantlab.progress import Narrator

CUDA = "onnxruntime-cuda"
OPENVINO = "openvino"
BACKENDS = (NAME, CUDA, OPENVINO, *FLAVOURS)


def builder_for(
    backend: str,
    options: BuildOptions | None = None,
    narrator: Narrator | None = None,
    calibration: NativeCalibration | None = None,
) -> EngineBuilder:
    """The builder of a backend.

    Args:
        backend: Its name.
        options: For the flavours of TensorRT alone.
        narrator: Told of the progress of long builds.
        calibration: Calibration by TensorRT itself.

    Raises:
        ConfigError: If there is no such backend, or it takes no options.
    """
    if backend in FLAVOURS:
        from quantlab.engines.tensorrt.builder import TensorRTBuilder

        return TensorRTBuilder(backend, options, narrator, calibration)
    if options is not None and options != BuildOptions():
        words = [f"--{name}" for name in options.described()] + (["--shapes MIN:OPT:MAX"] if options.profiles else [])
        raise ConfigError(
            f"{', '.join(words)}: not for the backend {backend!r}", expected=f"--backend {' or '.join(FLAVOURS)}"
        )
    if backend == NAME:
        return OnnxRuntimeBuilder()
    if backend == CUDA:
        from quantlab.engines.onnxruntime_cuda import OnnxRuntimeCudaBuilder

        return OnnxRuntimeCudaBuilder()
    if backend == OPENVINO:
        from quantlab.engines.openvino import OpenVinoBuilder

        return OpenVinoBuilder()
    near = near_match(backend, BACKENDS)
    raise ConfigError(
        f"there is no backend {backend!r}",
        expected=", ".join(BACKENDS),
        hint=f"did you mean {near!r}?" if near else None,
    )


def check_backend(backend: str, options: BuildOptions | None = None) -> None:
    """Refuse a backend that cannot be used here, before a model is read for it.

    Raises:
        BackendUnavailable: If its library is missing or broken.
        ConfigError: If there is no such backend, or it takes no options.
    """
    builder_for(backend, options)
    if backend in FLAVOURS:
        load_flavour(backend)
    elif backend == OPENVINO:
        from quantlab.engines.openvino_runtime import load_openvino

        load_openvino()


def target_for(name: str) -> TargetProfile:
    """The target profile of that name.

    Raises:
        ConfigError: With the nearest name.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = near_match(name, TARGETS)
    raise ConfigError(
        f"there is no target {name!r}", expected=", ".join(TARGETS), hint=f"did you mean {near!r}?" if near else None
    )


def quantization_kind(name: str) -> QuantizationKind:
    """The kind of that name.

    Raises:
        ConfigError: With the nearest name.
    """
    known = [kind.value for kind in QuantizationKind]
    if name in known:
        return QuantizationKind(name)
    near = near_match(name, known)
    raise ConfigError(
        f"there is no kind of quantization {name!r}",
        expected=", ".join(known),
        hint=f"did you mean {near!r}?" if near else None,
    )


def existing_policy(name: str) -> ExistingPolicy:
    """The policy of that name.

    Raises:
        ConfigError: With the nearest name.
    """
    known = [policy.value for policy in ExistingPolicy]
    if name in known:
        return ExistingPolicy(name)
    near = near_match(name, known)
    raise ConfigError(
        f"there is no policy {name!r} for Q/DQ pairs that a model already holds",
        expected=" or ".join(known),
        hint=f"did you mean {near!r}?" if near else None,
    )


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Precisions of a comma-separated list, without repeats.

    Raises:
        ConfigError: If the list is empty or names something else.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [precision.value for precision in Precision]
    for name in names:
        if name not in known:
            near = near_match(name, known)
            raise ConfigError(
                f"there is no precision {name!r}",
                expected=", ".join(known),
                hint=f"did you mean {near!r}?" if near else None,
            )
    if not names:
        raise ConfigError("no precision was named", expected="for example fp32,fp16,int8")
    return tuple(dict.fromkeys(Precision(name) for name in names))


def recovered_policy(name: str) -> bool:
    """Whether ``--recovered`` says to use what was recovered.

    Raises:
        ConfigError: With the nearest name.
    """
    known = ("use", "ignore")
    if name in known:
        return name == "use"
    near = near_match(name, known)
    raise ConfigError(
        f"there is no policy {name!r} for a recovered model",
        expected=" or ".join(known),
        hint=f"did you mean {near!r}?" if near else None,
    )


def check_table(prepared: Prepared, table: CalibrationTable) -> None:
    """Refuse a table that was made from another model, and one of a recovered model, which is no calibration.

    Raises:
        EngineMismatch: With both hashes.
    """
    provenance = table.provenance
    if table.recovered:
        raise EngineMismatch(
            f"the table holds the ranges of a recovered model ({provenance.model})",
            got=f"recovered by {', '.join(table.recovered)}",
            expected="the table of the calibration",
            hint="name the calibration.json one folder up; what was recovered beside it is used by itself",
        )
    for what, got, expected in (
        ("model", provenance.model_sha256, prepared.model.sha256),
        ("prepared graph", provenance.graph_sha256, prepared.graph_sha256),
    ):
        if got != expected:
            raise EngineMismatch(
                f"the calibration table was made from another {what} ({provenance.model})",
                got=f"sha256 {got[:16]}... in the table",
                expected=f"sha256 {expected[:16]}... of {prepared.model.name}",
                hint="run quantlab calibrate again with this model and the same --shapes",
            )


def build_variants(
    variants: Sequence[Variant],
    folder: Path,
    narrator: Narrator,
    options: BuildOptions | None = None,
    calibration: NativeCalibration | None = None,
) -> list[Sidecar]:
    """Build every variant into ``folder``.

    All are checked before the first is built.

    Args:
        variants: What to build.
        folder: Where to.
        narrator: Told of each engine, and of the progress of long builds.
        options: For the flavours of TensorRT alone.
        calibration: Calibration by TensorRT itself, in place of a table.

    Raises:
        BackendUnavailable: If a variant is not supported.
        ConfigError: If a calibrated variant has no table, its target does not have the precision, or an exclusion
            matches no layer.
        ModelError: If a model that is to be quantized holds Q/DQ pairs, and they are to be refused.
        EngineMismatch: If a table belongs to another model.
        EngineBuildError: If a graph is refused.
        OutputError: If a file cannot be written.
    """
    check_folder(folder)
    for variant in variants:
        reason = builder_for(variant.backend, options).supports(variant)
        if reason is not None:
            raise BackendUnavailable(f"cannot build {variant.precision}", got=reason)
        if variant.kind is not None:
            variant.target.limits(variant.kind)
            check_existing(variant.prepared.model, variant.existing)
            if variant.calibrated and (calibration is None or variant.precision not in CALIBRATED):
                if variant.table is None:
                    raise ConfigError(
                        f"{variant.precision} needs a calibration table", hint="run quantlab calibrate and pass --table"
                    )
                check_table(variant.prepared, variant.table)
        elif variant.precision in FORMATS and variant.table is not None and variant.backend != NAME:
            check_table(variant.prepared, variant.table)  # it says what stays FP32
        excluded_layers(variant.prepared.model.proto.graph, variant.target, variant.exclude)
    sidecars = []
    for variant in variants:
        path = builder_for(variant.backend, options, narrator, calibration).build(variant, folder)
        sidecar = read_sidecar(path)
        narrator.say(describe_sidecar(sidecar))
        if sidecar.skipped:
            narrator.say(f"       {describe_skipped(sidecar.skipped)}")
        if sidecar.float32:
            narrator.say(f"       {describe_float32(sidecar.float32)}")
        sidecars.append(sidecar)
    return sidecars


def build_networks(
    reference: str,
    backend: str,
    precisions: Sequence[Precision],
    folder: Path,
    narrator: Narrator,
    options: BuildOptions | None = None,
) -> list[Sidecar]:
    """Build a network that Python code makes, ``package.module:function``, in FP32 and TF32.

    Raises:
        ConfigError: If the backend is none of TensorRT's, or the function or a precision is none that can be used.
        BackendUnavailable: If the backend is not available here.
        EngineBuildError: If the code fails or the network is refused.
        OutputError: If a file cannot be written.
    """
    if backend not in FLAVOURS:
        raise ConfigError(
            "--network is for TensorRT", got=f"--backend {backend}", expected=f"--backend {' or '.join(FLAVOURS)}"
        )
    from quantlab.engines.tensorrt.builder import TensorRTBuilder, check_network_precision
    from quantlab.engines.tensorrt.network import find_network_function

    check_folder(folder)
    for precision in precisions:
        check_network_precision(precision, options or BuildOptions())
    source = find_network_function(reference)
    sidecars = []
    for precision in precisions:
        sidecar = read_sidecar(TensorRTBuilder(backend, options, narrator).build_network(source, precision, folder))
        narrator.say(describe_sidecar(sidecar))
        sidecars.append(sidecar)
    return sidecars


def describe_sidecar(sidecar: Sidecar) -> str:
    """One line for people."""
    proved = sidecar.proved or "nothing"
    return (
        f"built  {sidecar.name}: {sidecar.execution}, proved {proved} ({sidecar.proof}), {sidecar.size_bytes:,} bytes"
    )


def describe_skipped(skipped: Mapping[str, str]) -> str:
    """One line on layers that a target's limits keep in floating point: how many, and how many for each reason."""
    return f"{len(skipped)} of its layers stay in floating point by the target's size limits: {_counted(skipped)}"


def describe_float32(float32: Mapping[str, str]) -> str:
    """One line on nodes that a 16-bit graph keeps in FP32: how many, and how many for each reason."""
    stay = "node stays" if len(float32) == 1 else "nodes stay"
    return f"{len(float32)} {stay} in FP32: {_counted(float32)}"


def _counted(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{len(names)} x ({reason})" for reason, names in by_reason(reasons).items())
