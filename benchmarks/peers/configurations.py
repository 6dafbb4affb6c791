"""What is run: the environments of the peers, and every configuration of each.

Names end in the rules that they ask for: ``s8`` symmetric int8 activations, float biases (TensorRT's), ``u8`` unsigned
activations with zero-points (what integer CPUs like). What a model really has is read from its graph afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_TORCH = "torch==2.13.0"

ENVIRONMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "onnxruntime": ("onnxruntime==1.31.1", "onnx==1.23.2"),
        # Without the extra [onnx], whose onnxruntime-gpu and cupy have no use on a CPU; the same releases otherwise.
        "modelopt": (
            "nvidia-modelopt==0.47.0", "onnxruntime==1.24.4", "onnx==1.21.0", _TORCH, "onnx-graphsurgeon==0.6.1",
            "onnxconverter-common==1.16.0", "onnxslim==0.1.98", "polygraphy==0.53.6", "lief==1.0.0",
            "cppimport==26.4.17", "onnxscript==0.7.2",
        ),
        "nncf": ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.22.0", "onnxruntime==1.31.1"),
        "quark": ("amd-quark==0.13", "onnxruntime==1.31.1", "onnx==1.22.0", _TORCH),
        "aimet": ("aimet-onnx==2.42.0", "onnxruntime==1.31.1", "onnx==1.23.2", _TORCH, "torchvision==0.28.0"),
    }
)  # fmt: skip
"""Requirements of each peer's environment."""

RECOVERY: Mapping[str, str] = MappingProxyType(
    {
        "none": "none",
        "default": "default",
        "bias": "bias",
        "round": "round",
        "equalize-round": "equalize,round",
        "smooth-round": "smooth,round",
        "ranges-round": "ranges,round",
        "shift-round": "shift,round",
        "spare-round": "spare,round",
        "shift-spare-round": "shift,spare,round",
        "bias-round": "bias,round",
    }
)
"""Rows of quantlab: name, and what ``quantlab calibrate --recover`` is given. All but the first two are ablations."""

FEW, ALL = "few", "all"
"""How many calibration images: those for learned rounding and for what keeps all activations, or all there are."""

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to quantize.

    Attributes:
        peer: Whose.
        name: Unique among the peer's.
        images: `FEW` or `ALL`.
        settings: For the peer's script; for quantlab the arguments of ``quantlab calibrate``.
        models: Beginning of the names of the models that it is for; empty for all.
    """

    peer: str
    name: str
    images: str
    settings: Settings = field(default_factory=dict)
    models: str = ""

    @property
    def key(self) -> str:
        return f"{self.peer}/{self.name}"


def _quantlab() -> list[Configuration]:
    rows = []
    for target, rules in (("tensorrt", "s8"), ("onnxruntime", "u8")):
        for name, steps in RECOVERY.items():
            arguments = {"target": target, "recover": steps}
            rows.append(Configuration("quantlab", f"{name}-{rules}", ALL, arguments))
        for name in ("none", "default"):
            arguments = {"target": target, "recover": name, "method": "auto"}
            rows.append(Configuration("quantlab", f"{name}-auto-{rules}", ALL, arguments))
        arguments = {"target": target, "recover": "default"}
        rows.append(Configuration("quantlab", f"default-few-{rules}", FEW, arguments))
    return rows


def _onnxruntime() -> list[Configuration]:
    tensorrt = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
    s8 = {"activation": "int8", "per_channel": True, "options": tensorrt}
    u8 = {"activation": "uint8", "per_channel": True}
    rows = [Configuration("onnxruntime", "defaults", ALL)]
    for name, method, images in (
        ("minmax", "MinMax", ALL),
        ("entropy", "Entropy", FEW),
        ("percentile", "Percentile", FEW),
    ):
        rows.append(Configuration("onnxruntime", f"{name}-s8", images, {"method": method, **s8}))
        rows.append(Configuration("onnxruntime", f"{name}-u8", images, {"method": method, **u8}))
    rows.append(Configuration("onnxruntime", "percentile-all-u8", ALL, {"method": "Percentile", **u8}))
    return rows


def _modelopt() -> list[Configuration]:
    rows = [Configuration("modelopt", "defaults", ALL)]
    for method in ("max", "entropy"):
        settings = {"calibration_method": method, "high_precision_dtype": "fp32"}
        rows.append(Configuration("modelopt", f"{method}-s8", ALL, settings))
    return rows


def _nncf() -> list[Configuration]:
    rows = [Configuration("nncf", "defaults", ALL, {"backend": "onnx"})]
    for name, preset in (("s8", {"preset": "performance"}), ("u8", {"preset": "mixed"})):
        for correction, fast in (("fast-bias", True), ("full-bias", False)):
            settings = {"backend": "onnx", "fast_bias_correction": fast, **preset}
            rows.append(Configuration("nncf", f"{correction}-{name}", ALL, settings))
            for estimator in ("MINMAX", "HISTOGRAM"):
                ranges = {**settings, "range": estimator}
                rows.append(Configuration("nncf", f"{estimator.lower()}-{correction}-{name}", ALL, ranges))
        settings = {"backend": "onnx", "fast_bias_correction": False, "model_type": "transformer", **preset}
        rows.append(Configuration("nncf", f"transformer-{name}", ALL, settings, "fashion-vit"))
    for correction, fast in (("fast-bias", True), ("full-bias", False)):
        settings = {"backend": "openvino", "fast_bias_correction": fast, "preset": "mixed"}
        rows.append(Configuration("nncf", f"openvino-{correction}-u8", ALL, settings))
    return rows


def _quark() -> list[Configuration]:
    rows = [Configuration("quark", "defaults", FEW)]
    # Quark's ready-made settings: of its present interface, and (batch2, adaquant) of its earlier one.
    adaround = {"adaround": {"learning_rate": 0.1, "num_iterations": 1000}}
    batch2 = {"adaround": {"learning_rate": 0.1, "num_iterations": 1000, "batch_size": 2, "early_stop": True}}
    adaquant = {"adaquant": {"learning_rate": 1e-5, "num_iterations": 1000, "batch_size": 2, "early_stop": True}}
    for rules in ("s8", "u8"):
        base: Settings = {"activation": "uint8", "symmetric": False, "per_channel": True, "method": "Percentile"}
        if rules == "s8":
            options = {"QuantizeBias": False, "AddQDQPairToWeight": True}
            base |= {"activation": "int8", "symmetric": True, "options": options}
        minmax = {**base, "method": "MinMax"}
        bias = {**base, "options": {}}  # its correction ends in a KeyError with float biases
        for name, settings in {
            "percentile": base,
            "minmax": minmax,
            "bias-correction": {**bias, "algorithms": {"bias-correction": {}}},
            "cle": {**base, "algorithms": {"cle": {}}},
            "cle-bias-correction": {**bias, "algorithms": {"cle": {}, "bias-correction": {}}},
            "adaround": {**base, "algorithms": adaround},
            "adaround-batch2": {**base, "algorithms": batch2},
            "adaround-minmax": {**minmax, "algorithms": adaround},
            "cle-adaround": {**base, "algorithms": {"cle": {}, **adaround}},
            "adaquant": {**base, "algorithms": adaquant},
        }.items():
            rows.append(Configuration("quark", f"{name}-{rules}", FEW, settings))
        smooth = {**base, "algorithms": {"smoothquant": {}}}
        rows.append(Configuration("quark", f"smoothquant-{rules}", FEW, smooth, "fashion-vit"))
    return rows


def _aimet() -> list[Configuration]:
    rows = [Configuration("aimet", "defaults", ALL)]
    for rules in ("s8", "u8"):
        base: Settings = {"scheme": "tf_enhanced", "symmetric": rules == "s8", "clip": "fused"}
        minmax = {**base, "scheme": "min_max"}
        for name, images, models, settings in (
            ("min-max", ALL, "", minmax),
            ("tf-enhanced", ALL, "", base),
            ("cle-tf-enhanced", ALL, "", {**base, "steps": {"cle": True}}),
            ("sequential-mse", FEW, "", {**minmax, "steps": {"sequential-mse": True}}),
            ("adaround", FEW, "fashion", {**base, "steps": {"adaround": 10000}}),
            # A tenth of its default iterations: those take hours at this size.
            ("adaround-1000", FEW, "efficientnet", {**base, "steps": {"adaround": 1000}}),
            ("cle-adaround-1000", FEW, "", {**base, "steps": {"cle": True, "adaround": 1000}}),
        ):
            rows.append(Configuration("aimet", f"{name}-{rules}", images, settings, models))
    return rows


CONFIGURATIONS = (*_quantlab(), *_onnxruntime(), *_modelopt(), *_nncf(), *_quark(), *_aimet())
"""All of them, quantlab's first."""
