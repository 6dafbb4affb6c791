"""Weak typing, up to TensorRT 10: flags allow the builder a precision, and it decides layer by layer.

The calls follow the genuine Python bindings of TensorRT 10.16. They have not been run on its library.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from quantlab.calibrators.tensorrt import Calibrator, make_calibrator, network_tensors
from quantlab.calibrators.tensorrt_cache import ALGORITHMS, Algorithm
from quantlab.degradation import Degradation
from quantlab.engines.tensorrt.calibration import NativeCalibration, NativeRun
from quantlab.engines.tensorrt.config import Session
from quantlab.engines.tensorrt.flavour import Flavour
from quantlab.engines.tensorrt.graphs import GraphProof
from quantlab.engines.tensorrt.network import Network
from quantlab.engines.tensorrt.profiles import Profiles
from quantlab.engines.tensorrt.progress import BuildProgress
from quantlab.engines.variant import Variant, recovery_unused, variant_name
from quantlab.errors import ConfigError
from quantlab.graph.checks import has_qdq
from quantlab.graph.layers import excluded_layers
from quantlab.graph.qdq import Quantized
from quantlab.graph.typed import extremes_of, to_typed
from quantlab.precision import Precision
from quantlab.progress import Narrator

_FLAGS = {
    Precision.FP32: (),
    Precision.TF32: (),
    Precision.FP16: ("FP16",),
    Precision.BF16: ("BF16",),
    Precision.INT8: ("INT8",),
    Precision.INT8_FP16: ("INT8", "FP16"),
}

WEAK_PRECISIONS = tuple(_FLAGS)
"""Precisions that flags can allow."""


class WeakBuild:
    """The weakly typed build of one variant.

    Attributes:
        graph: The float32 graph, with the layers that were excluded.
        degradations: Of the calibration, once the build is over.
        native: TensorRT's own calibration, if it has one.
    """

    def __init__(
        self,
        variant: Variant,
        graph: Quantized,
        pinned: Mapping[str, str],
        calibrator: Calibrator | None,
        native: NativeRun | None = None,
    ) -> None:
        self.graph = graph
        self.degradations: tuple[Degradation, ...] = graph.degradations
        self._precision = variant.precision
        self._pinned = pinned
        self._calibrator = native.calibrator if native is not None else calibrator
        self.native = native
        self._tensors: tuple[str, ...] = ()
        self._found = 0

    @property
    def proof(self) -> GraphProof:
        """Nothing is proved by flags."""
        allowed = ", ".join(_FLAGS[self._precision]) or "none but FP32"
        held = f"{self._found} of {len(self._pinned)} nodes held in a wider precision"
        text = f"weakly typed: TensorRT may take {allowed}; {held}"
        return GraphProof(text)

    def attach(self, progress: BuildProgress) -> None:
        """Let an interruption end the calibration, and a failed calibration end the build."""
        calibrator = self._calibrator
        if calibrator is not None:
            progress.failed = lambda: calibrator.failed
        if self.native is not None:
            progress.stop = self.native.stop

    def configure(self, session: Session, config: Any, network: Network) -> None:
        """Set the flags, hold the kept nodes' layers in FP32, and set the calibrator."""
        module = session.flavour.module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flags and calibrators are deprecated, which is known
            for flag in _FLAGS[self._precision]:
                config.set_flag(getattr(module.BuilderFlag, flag))
            if self._pinned:
                config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
                half = self.graph.excluded if self._precision is Precision.INT8_FP16 else ()
                self._found = _hold(module, network.native, self._pinned, half)
            if self._calibrator is not None:
                self._calibrator.configure(config, session.builder, network.native)
                self._tensors = network_tensors(module, network.native)

    def raise_pending(self) -> None:
        """Raise what went wrong in the calibrator, which is the reason if there is no engine."""
        if self._calibrator is not None:
            self._calibrator.raise_pending()

    def complete(self) -> None:
        """Check that the calibrator was used as it was meant; to be called once there is an engine.

        Raises:
            CalibrationError: If TensorRT did not take the ranges.
        """
        if self._calibrator is not None:
            outcome = self.native.complete() if self.native is not None else self._calibrator.complete()
            self.degradations += (*outcome.degradations, *outcome.uncovered(self._tensors))

    def close(self) -> None:
        """Free what the calibrator holds."""
        if self.native is not None:
            self.native.close()
        elif self._calibrator is not None:
            self._calibrator.close()


def weak_recovery(variant: Variant) -> tuple[Degradation, ...]:
    """That a weakly typed INT8 engine is not made of the recovered model: TensorRT rounds its weights by itself.

    If no step was kept, there is no such model, and the reason for that is all there is to say.
    """
    if variant.recovery is None or "INT8" not in _FLAGS[variant.precision]:
        return ()
    if not variant.recovery.steps:
        return variant.recovery.degradations
    reason = "TensorRT rounds the weights of a weakly typed network by itself"
    return (recovery_unused(f"{variant.backend} {variant.precision}", reason),)


def weak_build(
    variant: Variant,
    flavour: Flavour,
    narrator: Narrator,
    calibration: NativeCalibration | None = None,
    profiles: Profiles = (),
) -> WeakBuild:
    """Prepare the weakly typed build of a variant.

    Layers that are excluded are held in FP32, with INT8 and FP16 together in FP16; in FP16 and BF16 also the nodes
    that a strongly typed graph would keep in FP32. In INT8, TensorRT calibrates if it is to, or else the table stands
    in for that.

    Args:
        variant: What to build.
        flavour: The module.
        narrator: Told of progress.
        calibration: TensorRT's own calibration, for INT8.
        profiles: What ``--shapes`` asked for.

    Raises:
        ConfigError: If INT8 has no ranges, or the model has Q/DQ pairs, with which calibrators do not go.
        BackendUnavailable: If the module has no calibrators.
        QuantlabError: As `make_calibrator`, for data or a cache that cannot be used.
    """
    source, precision = variant.prepared.model, variant.precision
    pinned: dict[str, str] = {}
    excluded: frozenset[str] = frozenset()
    degradations = weak_recovery(variant)
    calibrator = native = None
    float32: dict[str, str] = {}
    if _FLAGS[precision]:
        excluded = excluded_layers(source.proto.graph, variant.target, variant.exclude)
        pinned.update((name, "excluded") for name in excluded)
    if "FP16" in _FLAGS[precision] or "BF16" in _FLAGS[precision]:
        half = Precision.BF16 if precision is Precision.BF16 else Precision.FP16
        typed = to_typed(source, half, extremes=extremes_of(variant.table) if variant.table is not None else None)
        float32.update((name, reason) for name, reason in typed.kept.items() if name not in excluded)
        pinned.update(float32)
        degradations += typed.degradations
    if "INT8" in _FLAGS[precision]:
        if variant.table is None and calibration is None:
            hint = "run quantlab calibrate and pass --table, or let TensorRT calibrate on --data"
            raise ConfigError(f"{precision} needs a calibration table", hint=hint)
        if has_qdq(source.proto):
            raise ConfigError(
                f"model {source.name} has Q/DQ pairs, which TensorRT does not mix with a calibrator",
                expected="a float model", hint="leave out --typing weak",
            )  # fmt: skip
        if calibration is not None:
            name = variant_name(flavour.backend, precision, calibration.method, len(excluded))
            native = NativeRun(calibration, flavour.module, source, profiles, name, narrator)
        elif variant.table is not None:
            calibrator = make_calibrator(
                flavour.module, ALGORITHMS.get(variant.table.method, Algorithm.ENTROPY_2), table=variant.table,
                model=source.path.name if source.path else source.name, model_sha256=source.sha256, narrator=narrator,
            )  # fmt: skip
    graph = Quantized(source.proto, (), tuple(sorted(excluded)), {}, degradations, float32=float32)
    return WeakBuild(variant, graph, pinned, calibrator, native)


def _hold(module: Any, native: Any, names: Mapping[str, str], half: Collection[str]) -> int:
    """Hold the layers of the named nodes in FP32, some in FP16; how many of the nodes have a layer.

    The parser names a layer after its node, or, where a node becomes several layers, names the node in their metadata.
    """
    found: set[str] = set()
    by_metadata = {f"[ONNX Layer: {name}]": name for name in names}
    for index in range(native.num_layers):
        layer = native.get_layer(index)
        name = layer.name if layer.name in names else by_metadata.get(layer.metadata)
        if name is None:
            continue
        found.add(name)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if all(one.dtype == module.DataType.FLOAT for one in outputs):  # layers of integers have no such choice
            if name in half:
                layer.precision = module.DataType.HALF
                continue
            layer.precision = module.DataType.FLOAT
            for i in range(layer.num_outputs):
                layer.set_output_type(i, module.DataType.FLOAT)
    return len(found)
