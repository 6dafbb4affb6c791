from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_data import prepared_cnn, variant
from h100_outputs import stored
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from simulated_engines import behind, every_arithmetic, everywhere, simulate

from quantlab.datasets.samples import SAMPLE_MODELS, sample_model
from quantlab.engines.confirmation import confirm
from quantlab.engines.emulation import (
    FLOAT32_REFERENCE,
    FP32_UNFUSED,
    OWN,
    OWN_TF32,
    TF32_ALIGNED,
    TF32_NARROW_CUT,
    TF32_TRUNCATED,
    TRUTH,
)
from quantlab.engines.fingerprint import Fingerprint, fingerprint
from quantlab.engines.onnxruntime import OnnxRuntimeBuilder, variant_graph
from quantlab.engines.probe import Probe, make_probe, prepared_probe
from quantlab.engines.tensorrt.inspector import LayerSummary, parse_inspection
from quantlab.engines.typed_variant import typed_graph_of
from quantlab.engines.variant import Variant
from quantlab.errors import EngineMismatch
from quantlab.graph.model import Model, load_model
from quantlab.graph.prepare import Prepared, prepare
from quantlab.graph.proof import Proof
from quantlab.graph.targets import TENSORRT
from quantlab.precision import Precision


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], stored: list[Any]) -> Model:
    made = helper.make_graph(nodes, "test", inputs, outputs, stored)
    return Model.of(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def one_layer() -> Model:
    value = helper.make_tensor_value_info
    w = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    return graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        [value("x", TensorProto.FLOAT, ["n", 64])], [value("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(w, "w")],
    )  # fmt: skip


ARITHMETICS = [name for name, _ in every_arithmetic(one_layer())]


@pytest.fixture(scope="module", params=SAMPLE_MODELS)
def bundled(request: pytest.FixtureRequest) -> tuple[Model, Probe]:
    model = prepare(load_model(sample_model(request.param))).model
    return model, make_probe(model, None, threads=1)


def simulated(model: Model, probe: Probe, **arithmetic: Any) -> dict[str, NDArray[np.generic]]:
    results = simulate(model, list(probe.feeds()), **arithmetic)
    return {name: np.stack([result[name] for result in results]) for name in results[0]}


@pytest.mark.parametrize("name", ARITHMETICS)
def test_tells_every_arithmetic_of_the_bundled_models(bundled: tuple[Model, Probe], name: str) -> None:
    """Deviations of real engines too: other orders of sums, Winograd's loss, ties, cut operands, fused layers."""
    model, probe = bundled
    arithmetic = dict(every_arithmetic(model))[name]
    found = fingerprint(probe, simulated(model, probe, **arithmetic))
    wanted = name.split(",")[0]
    if name == "fp16, last layer in FP32":  # like TF32's errors in deep networks: the type may stay open
        assert found.precision in (None, Precision.FP16), found.text
        assert Precision.FP16 in found.possible, found.text
    else:
        assert (found.precision or "none") == wanted, found.text
    assert found.follows_own is None
    assert found.values == 260


@pytest.mark.parametrize("name", [name for name in ARITHMETICS if not name.endswith("in Gemm only")])
def test_is_never_wrong_on_shallow_models(name: str) -> None:
    """A model of one layer: TF32 and FP16 operands give the same numbers unless the outputs are stored in FP16."""
    model = one_layer()
    probe = make_probe(model, None, threads=1)
    found = fingerprint(probe, simulated(model, probe, **dict(every_arithmetic(model))[name]))
    wanted = name.split(",")[0]
    same = name.startswith("tf32") and name != "tf32, cut"
    if same or name == "fp16, last layer in FP32":
        assert found.possible == (Precision.TF32, Precision.FP16)
        assert found.precision is None
        assert found.text.startswith("cannot tell TF32 from FP16")
    else:
        assert (found.precision or "none") == wanted, found.text


def with_softmax() -> Model:
    value = helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    stored = [numpy_helper.from_array((rng.standard_normal(s) * 0.1).astype(np.float32), n)
              for n, s in (("w", (64, 64)), ("v", (64, 32)))]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"], name="n"),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1),
    ]
    x = value("x", TensorProto.FLOAT, ["n", 64])
    return graph(nodes, [x], [value("y", TensorProto.FLOAT, ["n", 32])], stored)


def test_probabilities_work_relative_to_themselves() -> None:
    model = with_softmax()
    probe = make_probe(model, None, threads=1)
    arithmetics = dict(every_arithmetic(model))
    exact = fingerprint(probe, simulated(model, probe, **arithmetics["fp32, other order"]))
    assert exact.precision is Precision.FP32
    half = fingerprint(probe, simulated(model, probe, **arithmetics["fp16, every operator"]))
    assert half.precision is Precision.FP16
    short = fingerprint(probe, simulated(model, probe, operands=everywhere("tf32")))
    assert Precision.TF32 in short.possible
    assert Precision.FP32 not in short.possible


def test_model_without_products_cannot_tell_fp32_from_tf32() -> None:
    value = helper.make_tensor_value_info
    model = graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 64])], [value("y", TensorProto.FLOAT, ["n", 64])], [],
    )  # fmt: skip
    probe = make_probe(model, None, threads=1)
    found = fingerprint(probe, simulated(model, probe))
    assert found.precision is None
    assert set(found.possible) == {Precision.FP32, Precision.TF32}
    assert found.text.startswith("cannot tell")


def test_text_states_the_bracket(bundled: tuple[Model, Probe]) -> None:
    model, probe = bundled
    found = fingerprint(probe, simulated(model, probe, operands=everywhere("tf32")))
    assert found.text.startswith("computes in TF32 (error ")
    assert "against float64: " in found.text
    assert "times FP32's; " in found.text
    assert "times TF32's, correlation 0." in found.text
    tf32 = next(match for match in found.candidates if match.arithmetic == "tf32")
    assert found.relative_error == pytest.approx(tf32.ratio * tf32.relative_error)


def test_real_emulations_of_the_cpu_backend_are_told(tmp_path: Path) -> None:
    prepared = prepared_cnn()
    builder = OnnxRuntimeBuilder()
    for precision in (Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8):
        made = variant(prepared, precision)
        own = variant_graph(made).proto if precision in (Precision.INT8, Precision.FP8) else None
        probe = make_probe(prepared.model, own, threads=1)
        engine = builder.load(builder.build(made, tmp_path), threads=1)
        found = fingerprint(probe, probe.run(engine.run))
        assert found.precision is precision, found.text
        assert found.follows_own is (None if own is None else True)


@pytest.fixture(scope="module")
def quantized() -> tuple[Model, Model, Probe]:
    prepared = prepared_cnn()
    own = prepared.model.with_proto(variant_graph(variant(prepared, Precision.INT8)).proto)
    return prepared.model, own, make_probe(prepared.model, own.proto, threads=1)


@pytest.mark.parametrize(
    "arithmetic",
    [
        {},
        {"stores": everywhere("noise:1e-6")},
        {"operands": everywhere("tf32")},
        {"stores": behind("fp16", "Conv", "Relu")},
    ],
)
def test_quantized_engine_that_obeys_its_graph(
    quantized: tuple[Model, Model, Probe], arithmetic: dict[str, Any]
) -> None:
    _, own, probe = quantized
    found = fingerprint(probe, simulated(own, probe, **arithmetic))
    assert found.follows_own is True, found.text
    assert found.precision is Precision.INT8
    assert found.text.startswith("computes in INT8, as its own graph says")


@pytest.mark.parametrize("name", ["fp32, exact", "tf32, nearest", "fp16, every operator", "bf16, every operator"])
def test_quantized_engine_that_ignores_its_graph(quantized: tuple[Model, Model, Probe], name: str) -> None:
    model, _, probe = quantized
    found = fingerprint(probe, simulated(model, probe, **dict(every_arithmetic(model))[name]))
    assert found.follows_own is False, found.text
    assert found.precision == name.split(",")[0]
    assert "not what its own graph says" in found.text


def test_graph_that_amplifies_rounding_proves_nothing_by_direction(quantized: tuple[Model, Model, Probe]) -> None:
    """Two emulations of the graph that agree in size alone: an engine of that size is neither proved nor refuted."""
    probe = quantized[2]
    rng = np.random.default_rng(0)
    truth = probe.expected[TRUTH]
    size = np.linalg.norm(probe.expected[OWN] - truth)

    def other() -> NDArray[np.float64]:
        error = rng.standard_normal(truth.shape)
        return truth + error * size / np.linalg.norm(error)

    unsteady = dataclasses.replace(probe, expected={**probe.expected, OWN: other(), OWN_TF32: other()})
    found = fingerprint(unsteady, {"scores": other().reshape(probe.calls, 1, 6)})
    assert found.follows_own is None
    assert found.precision is None
    assert found.possible == (Precision.INT8,)
    assert "their direction shows nothing" in found.text


def test_wrong_results_are_no_precision(bundled: tuple[Model, Probe]) -> None:
    model, probe = bundled
    outputs = {name: values * 1.5 for name, values in simulated(model, probe).items()}
    found = fingerprint(probe, outputs)  # type: ignore[arg-type]
    assert found.precision is None
    assert found.possible == ()
    assert "worse than any of the formats" in found.text


def test_results_that_are_not_finite(bundled: tuple[Model, Probe]) -> None:
    model, probe = bundled
    outputs = simulated(model, probe)
    (values,) = outputs.values()
    values[0, 0, :2] = np.nan
    values[1, 0, 0] = np.inf
    found = fingerprint(probe, outputs)
    assert found.precision is None
    assert np.isnan(found.relative_error)
    assert found.text == "cannot tell: 2 NaN and 1 infinite of 260 output values"


def test_overflow_that_the_emulation_has_too_is_said(bundled: tuple[Model, Probe]) -> None:
    model, probe = bundled
    overflowing = dataclasses.replace(probe, expected={**probe.expected, "fp16": probe.expected["fp16"] * np.inf})
    outputs = simulated(model, probe)
    (values,) = outputs.values()
    values[0, 0, 0] = np.inf
    assert fingerprint(overflowing, outputs).text.endswith("so has the emulation of FP16")


def test_float32_reference_still_separates_fp32_from_tf32(bundled: tuple[Model, Probe]) -> None:
    model, probe = bundled
    further = (TF32_TRUNCATED, TF32_ALIGNED, TF32_NARROW_CUT)
    expected = {name: values for name, values in probe.expected.items() if name not in further}
    expected[TRUTH] = expected[FP32_UNFUSED]
    coarse = dataclasses.replace(probe, expected=expected, reference=FLOAT32_REFERENCE)
    for name in ("fp32, other order", "tf32, nearest", "fp16, every operator", "bf16, every operator"):
        found = fingerprint(coarse, simulated(model, probe, **dict(every_arithmetic(model))[name]))
        assert found.precision == name.split(",")[0], found.text
        assert found.reference == FLOAT32_REFERENCE
        assert "against the reference, float32 on the CPU" in found.text


def test_outputs_of_other_calls_are_refused(bundled: tuple[Model, Probe]) -> None:
    model, probe = bundled
    outputs = simulated(model, probe)
    with pytest.raises(EngineMismatch, match="not of all calls"):
        fingerprint(probe, {name: values[:-1] for name, values in outputs.items()})
    with pytest.raises(EngineMismatch, match="has no output"):
        fingerprint(probe, {})


@functools.cache
def sample(name: str) -> Prepared:
    return prepare(load_model(sample_model(name)))


def probe_on_h100(model: str, engine: str) -> Probe:
    """The probe of a real engine, with its own graph as it was."""
    prepared = sample(f"fashion-{model}")
    if engine in ("fp16", "bf16"):
        own = typed_graph_of(Variant(prepared, "tensorrt-rtx", Precision(engine), TENSORRT)).proto
        return prepared_probe(prepared, own, threads=1)
    probe = prepared_probe(prepared, None, threads=1)
    if engine == "fp32":
        return probe
    own_values = {name: stored(model, engine, name).astype(np.float64) for name in (OWN, OWN_TF32)}
    precision = Precision(engine.partition("-")[0])
    return dataclasses.replace(probe, expected={**probe.expected, **own_values}, own_precision=precision)


def on_h100(model: str, engine: str, *without: str) -> Fingerprint:
    """The fingerprint of a real engine, without some of the emulations."""
    probe = probe_on_h100(model, engine)
    expected = {name: values for name, values in probe.expected.items() if name not in without}
    logits = stored(model, engine).reshape(probe.calls, 1, 10)
    return fingerprint(dataclasses.replace(probe, expected=expected), {"logits": logits})


@pytest.mark.parametrize(
    ("model", "engine", "precision", "follows_own"),
    [
        ("resnet", "fp32", Precision.TF32, None),
        ("resnet", "fp16", Precision.FP16, True),
        ("resnet", "bf16", Precision.BF16, True),
        ("resnet", "fp8", Precision.FP8, True),
        ("mobilenet", "fp32", Precision.TF32, None),
        ("mobilenet", "fp16", None, True),
        ("mobilenet", "bf16", Precision.BF16, True),
        ("mobilenet", "fp8", Precision.FP8, True),
        ("vit", "fp32", Precision.TF32, None),
        ("vit", "fp16", Precision.FP16, True),
        ("vit", "bf16", Precision.BF16, True),
        ("vit", "fp8", None, False),
        ("vit", "fp8-but-attention", Precision.FP8, True),
        ("vit", "int8", Precision.INT8, True),
    ],
)
def test_real_engines_of_an_h100(
    model: str, engine: str, precision: Precision | None, follows_own: bool | None
) -> None:
    """TF32 runs although its flag was cleared. The ViT with attention in FP8 errs three times as much as it should."""
    found = on_h100(model, engine)
    assert found.precision is precision, found.text
    assert found.follows_own is follows_own
    assert Precision.FP32 not in found.possible


@pytest.mark.parametrize(
    ("model", "arithmetic", "correlation"), [("resnet", TF32_NARROW_CUT, 0.99), ("mobilenet", TF32_ALIGNED, 0.93)]
)
def test_kernels_of_an_h100_are_explained_by_the_shapes_of_layers(
    model: str, arithmetic: str, correlation: float
) -> None:
    """Nearly all of the error is reproduced, and without that emulation nothing is named."""
    match = next(match for match in on_h100(model, "fp32").candidates if match.arithmetic == arithmetic)
    assert match.ratio == pytest.approx(1.0, abs=0.05)
    assert match.correlation >= correlation
    assert on_h100(model, "fp32", TF32_ALIGNED, TF32_NARROW_CUT).precision is None


def inspected(*operands: str) -> LayerSummary:
    layers = ", ".join(
        f'{{"Name": "l{i}", "LayerType": "gemm", "Inputs": [{{"Name": "x", "Datatype": "{kind}"}}], "Outputs": []}}'
        for i, kind in enumerate(operands)
    )
    return parse_inspection(f'{{"Layers": [{layers}]}}')


def shown(
    precision: Precision | None, *possible: Precision, follows: bool | None = None, text: str = "figures"
) -> Fingerprint:
    return Fingerprint(
        precision, text, 1e-3, (), possible or ((precision,) if precision else ()), follows, "float64", 9
    )


def stated(precision: Precision | None) -> Proof:
    return Proof(precision, "the graph's text", 1, 0, ())


FP32, TF32, FP16, INT8, FP8 = Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8, Precision.FP8


@pytest.mark.parametrize(
    ("requested", "graph", "found", "layers", "proved", "words"),
    [
        (FP32, stated(FP32), shown(TF32), None, TF32, "NOT FP32: TF32; figures"),
        (FP32, stated(FP32), shown(FP32), None, FP32, "figures"),
        (FP32, stated(FP32), None, None, None, "nothing but a run on a GPU can show FP32"),
        (TF32, stated(FP32), shown(FP32), None, FP32, "NOT TF32: FP32"),
        (FP32, None, shown(None, TF32, FP16), None, None, "FP32 is not proved"),
        (FP32, None, shown(None, TF32, FP16), inspected("Float"), TF32, "the inspector's types leave TF32 alone"),
        (FP16, stated(FP16), shown(None, FP16, TF32), inspected("Half"), FP16, "the inspector's types leave FP16"),
        (FP16, stated(FP16), None, None, FP16, "the graph's text"),
        (FP16, stated(FP16), shown(FP16), inspected("Half", "Half"), FP16, "operands of the 2 weighted ones: 2 fp16"),
        (FP16, stated(FP16), shown(FP32), None, FP32, "NOT FP16: FP32; the run contradicts the graph, which says FP16"),
        (FP16, stated(FP16), shown(None, TF32, FP32), None, None, "FP16 is not proved; the run contradicts"),
        (FP16, stated(FP16), shown(None), None, FP16, "figures"),
        (FP16, None, shown(FP16), None, FP16, "figures"),
        (INT8, stated(INT8), shown(INT8, follows=True), inspected("Int8", "Float"), INT8, "1 int8, 1 fp32"),
        (INT8, stated(INT8), shown(FP32, follows=False), None, FP32, "NOT INT8: FP32; the run contradicts"),
        (INT8, stated(INT8), shown(None, follows=False), None, None, "INT8 is not proved; the run contradicts"),
        (INT8, stated(INT8), shown(INT8, follows=True), inspected("Float"), None, "no weighted layer with INT8"),
        (FP8, stated(FP8), shown(None, FP8), inspected("FP8", "Float"), FP8, "weighted layers that stayed"),
    ],
)  # fmt: skip
def test_confirmation(
    requested: Precision,
    graph: Proof | None,
    found: Fingerprint | None,
    layers: LayerSummary | None,
    proved: Precision | None,
    words: str,
) -> None:
    precision, text = confirm(requested, graph, found, layers)
    assert precision is proved, text
    assert words in text


@pytest.mark.parametrize("model", ["resnet", "mobilenet"])
def test_types_and_size_prove_tf32_where_the_direction_shows_nothing(model: str) -> None:
    """Real engines whose kernels the emulations do not know."""
    found = on_h100(model, "fp32", TF32_ALIGNED, TF32_NARROW_CUT)
    assert found.precision is None
    for layers, is_float32 in ((inspected("Float", "Float"), False), (None, True)):
        proved, text = confirm(FP32, None, found, layers, is_float32=is_float32)
        assert proved is TF32
        assert text.startswith("NOT FP32: TF32; cannot tell")
        assert f"its types leave FP32 or TF32, and the error is {found.multiple:,.0f} times FP32's" in text
        assert confirm(TF32, None, found, layers, is_float32=is_float32)[0] is TF32
    assert confirm(FP32, None, found, None)[0] is None
    assert confirm(FP32, None, found, inspected("Float", "Half"))[0] is None


@pytest.mark.parametrize(
    "name", ["none, weights in FP16 only", "none, output in FP16 only", "none, TF32 in Gemm only", "wrong"]
)
def test_size_proves_nothing_against_other_evidence(bundled: tuple[Model, Probe], name: str) -> None:
    model, probe = bundled
    outputs = simulated(model, probe, **dict(every_arithmetic(model)).get(name, {}))
    if name == "wrong":
        outputs = {key: values * np.float32(1.5) for key, values in outputs.items()}  # type: ignore[operator]
    found = fingerprint(probe, outputs)
    assert confirm(FP32, None, found, None, is_float32=True)[0] is None, found.text


def test_types_do_not_stand_against_outputs_of_another_format() -> None:
    proved, text = confirm(FP32, None, on_h100("resnet", "fp16"), None, is_float32=True)
    assert proved is FP16, text


def test_real_engine_that_is_what_was_not_asked_for() -> None:
    """Requested FP32, TF32 flag cleared: the engine says Float everywhere, and runs TF32."""
    proved, text = confirm(FP32, None, on_h100("mobilenet", "fp32"), inspected("Float", "Float"))
    assert proved is TF32
    assert text.startswith("NOT FP32: TF32; computes in TF32 (error 5.7e-04 against float64: 1,681 times FP32's; ")
