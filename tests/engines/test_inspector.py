"""The fixtures are small, and written for these tests, in the form of real answers.

`TENSORRT_10` has that of NVIDIA's examples for trt-engine-explorer (ResNet on A100: TensorRT 8.4 to 10), `TENSORRT_11`
that of NVIDIA's migration page for TensorRT 11, and `RTX` excerpts of what TensorRT-RTX 1.6.1.120 gave on an H100
(compute capability 9.0, driver 580.159.04, 2026-11-21) for the bundled ViT in FP8.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from quantlab.engines.tensorrt.inspector import UNKNOWN, LayerSummary, describe, parse_inspection
from quantlab.errors import MeasurementError


def tensor(name: str, text: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [32, 64, 56, 56], "Format/Datatype": text}


def layer(name: str, kind: str, inputs: list[str], outputs: list[str], **fields: object) -> dict[str, Any]:
    return {
        "Name": name, "LayerType": kind, "Inputs": [tensor(f"{name}.i{i}", text) for i, text in enumerate(inputs)],
        "Outputs": [tensor(f"{name}.o{i}", text) for i, text in enumerate(outputs)], **fields,
    }  # fmt: skip


INT8_32 = "Thirty-two wide channel vectorized row major Int8 format"
TENSORRT_10 = {
    "Layers": [
        layer("QuantizeLinear_2", "Reformat", ["Row major linear FP32"], ["Row major Int8 format"], Origin="QDQ"),
        layer("w + QuantizeLinear_7 + Conv_9 + Relu_10", "CaskConvolution", [INT8_32], [INT8_32],
              TacticName="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_t1r3s3"),
        layer("w2 + QuantizeLinear_20 + Conv_22 + Add_30", "CaskConvolution", [INT8_32, "Row major linear FP32"],
              ["Row major linear FP32"]),
        layer("Reformatting CopyNode for Input Tensor 0 to Conv_24", "Reformat", ["Row major linear FP32"],
              ["Channel major FP16 format where channel % 8 == 0"], Origin="REFORMAT"),
        layer("Conv_24", "CaskConvolution", ["Channel major FP16 format where channel % 8 == 0"], ["Half"],
              TacticName="sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_t1r1s1"),
        layer("Conv_26", "CaskConvolution", ["Row major linear FP32"], ["Row major linear FP32"],
              TacticName="sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x32_t1r3s3"),
        layer("Reformatting CopyNode for Output Tensor 0 to Conv_26", "NoOp", ["Channel major FP32 format"],
              ["Row major linear FP32"]),
        layer("MaxPool_28", "TiledPooling", ["N/A due to dynamic shapes"], ["Unknown format"]),
        layer("Gather_30", "Gather", ["Row major linear Int32"], ["Row major linear Int32"]),
    ],
    "Bindings": ["input", "output"],
}  # fmt: skip


def split(name: str, datatype: str, form: str = "(Linear) Row major linear format") -> dict[str, Any]:
    return {"Name": name, "Dimensions": [-1, 96], "Strides": [96, 1], "Datatype": datatype, "Format": form}


def myelin(name: str, kind: str, inputs: list[str], outputs: list[str], constants: list[str]) -> dict[str, Any]:
    return {
        "Name": name, "LayerType": kind, "Inputs": [split(f"{name}.i", text) for text in inputs],
        "Constants": [split(f"{name}.c", text) for text in constants],
        "Outputs": [split(f"{name}.o", text) for text in outputs], "TacticName": "__myelin_CASK_STUB", "StreamId": 0,
        "Metadata": "[ONNX Layer: /mlp/MatMul]\x1f[ONNX Layer: /mlp/Add]",
    }  # fmt: skip


RTX = {
    "Layers": [
        {"Name": "__mye16390_0_myl0_0", "LayerType": "shape_call", "Inputs": [], "Constants": [], "Outputs": []},
        myelin("__myl_Move_myl0_1", "kgen", ["Float"], ["Float"], []),
        myelin("/patches/Conv_myl0_2", "correlation", ["Float"], ["Float"], ["Float", "Float"]),
        myelin("__mye58255+__mye58243+__mye58231_myl0_4", "gemm", ["Float"], ["Float"], ["Float"]),
        myelin("__myl_AddMulCastReshTranReshMoveReplConc_myl0_5", "kgen", ["Float"], ["FP8"], ["Float"]),
        myelin("_gemm_mha_v2_myl0_8", "kgen", ["FP8", "FP8", "FP8"], ["FP8"], []),
        myelin("/project/MatMul_myl0_10", "gemm", ["FP8"], ["Float"], ["FP8", "Float"]),
        myelin("__myl_FcAddDivCastErfCastAddMulMul_myl0_11", "runtime_fusion", ["Half"], ["Half"], ["Half"]),
        myelin("__myl_TranReshCast_myl0_12", "kgen", ["Half"], ["Float"], []),
    ],
    "I/O Tensors": [
        {"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [-1, 1, 28, 28], "Location": "Device",
         "IsShapeInferenceIO": False, "ProfileInfo": [{"MinShape": [1, 1, 28, 28], "Format": "Row major linear FP32"}]},
    ],
    "Engine Metadata": {"Multi-Device": "Disabled"},
}  # fmt: skip


def parsed(document: object, times_ms: dict[str, float] | None = None) -> LayerSummary:
    return parse_inspection(json.dumps(document), times_ms)


def test_tensorrt_10_is_counted() -> None:
    summary = parsed(TENSORRT_10)
    assert summary.detailed
    assert [layer.precision for layer in summary.layers] == [
        "fp32", "int8", "int8", "fp32", "fp16", "fp32", "fp32", UNKNOWN, "int32",
    ]  # fmt: skip
    assert summary.by_precision == {"fp32": 4, "int8": 2, "fp16": 1, UNKNOWN: 1, "int32": 1}
    assert summary.weighted_by_precision == {"int8": 2, "fp16": 1, "fp32": 1}
    assert summary.by_kind["CaskConvolution"] == 4
    assert summary.reformats == ("Reformatting CopyNode for Input Tensor 0 to Conv_24",)  # a NoOp costs nothing
    assert summary.unfused == ("QuantizeLinear_2",)
    assert summary.tf32_tactics == ("Conv_26",)
    assert summary.half_sum_tactics == ("Conv_24",)
    assert summary.tensor_types == {"fp32": 8, "int8": 4, "fp16": 3, UNKNOWN: 2, "int32": 2}


def test_rtx_is_counted() -> None:
    summary = parsed(RTX)
    assert [layer.precision for layer in summary.layers] == [
        UNKNOWN, "fp32", "fp32", "fp32", "fp32", "fp8", "fp8", "fp16", "fp16",
    ]  # fmt: skip
    assert summary.weighted_by_precision == {"fp32": 2, "fp8": 2, "fp16": 1}
    assert summary.reformats == ("__myl_Move_myl0_1", "__myl_TranReshCast_myl0_12")
    assert summary.tensor_types["fp8"] == 7


def test_tensorrt_11_states_types_apart() -> None:
    fields = {
        "Name": "t",
        "Dimensions": [1, 8],
        "DataType": "BFloat16",
        "Format": "Row major linear BF16 format (kLINEAR)",
    }
    one = {"Name": "gemm_0", "LayerType": "MatrixMultiply", "Inputs": [fields], "Outputs": [fields]}
    summary = parsed({"Layers": [one], "I/O Tensors": [fields]})
    assert summary.weighted_by_precision == {"bf16": 1}


def test_names_alone_tell_little_and_say_so() -> None:
    names = [
        "Reformatting CopyNode for Input Tensor 0 to Conv_0", "w + QuantizeLinear_3 + Conv_0", "DequantizeLinear_9",
        "__myl_MoveTran_myl0_1",
    ]  # fmt: skip
    summary = parsed({"Layers": names, "Bindings": ["x"]})
    assert not summary.detailed
    assert summary.by_precision == {UNKNOWN: 4}
    assert summary.weighted_by_precision == {}
    assert summary.reformats == (names[0], names[3])
    assert summary.unfused == (names[2],)
    assert describe(summary)[0] == (
        "4 layers, of which the inspector gives names alone: build with detailed profiling verbosity"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Half", "fp16"), ("Float", "fp32"), ("Int8 NC/32HW32 format", "int8"), ("FP16 NC/8HW8", "fp16"),
        ("Row major linear FP32", "fp32"), ("Row major linear BOOL", "bool"), ("BFloat16", "bf16"), ("BF16", "bf16"),
        ("FP8", "fp8"), ("Float8E4M3", "fp8"), ("UInt8", "uint8"), ("Int4", "int4"), ("FP4", "fp4"), ("Int64", "int64"),
        ("Int32", "int32"), ("", UNKNOWN), ("Unknown format", UNKNOWN), ("FP16 or FP32", UNKNOWN),
    ],
)  # fmt: skip
def test_types_are_read_from_texts(text: str, expected: str) -> None:
    (found,) = parsed({"Layers": [layer("a", "PointWise", [text], [text])]}).layers
    assert found.precision == expected


def test_times_are_shared_out() -> None:
    times = {"_gemm_mha_v2_myl0_8": 0.3, "/project/MatMul_myl0_10": 0.2, "/patches/Conv_myl0_2": 0.4,
             "__myl_Move_myl0_1": 0.1, "another": 5.0}  # fmt: skip
    summary = parsed(RTX, times)
    assert summary.total_ms == pytest.approx(1.0)
    assert summary.time_by_precision == pytest.approx({"fp8": 0.5, "fp32": 0.5, "fp16": 0.0, UNKNOWN: 0.0})
    assert summary.unmatched_times == ("another",)
    text = "\n".join(describe(summary))
    assert "2 reformats, 10% of the time" in text
    assert "time of 1.000 ms by precision: 50% fp32, 50% fp8" in text
    assert parsed(RTX).total_ms is None
    assert parsed(RTX).time_by_precision == {}


def test_describes_what_matters() -> None:
    floating = (
        "/patches/Conv_myl0_2", "__mye58255+__mye58243+__mye58231_myl0_4", "__myl_FcAddDivCastErfCastAddMulMul_myl0_11",
    )  # fmt: skip
    assert describe(parsed(RTX)) == (
        "9 layers; operands of the 5 weighted ones: 2 fp32, 2 fp8, 1 fp16",
        f"weighted layers that stayed in floating point: {', '.join(floating)}",
        "2 reformats",
    )
    text = "\n".join(describe(parsed(TENSORRT_10)))
    assert "1 Q/DQ step not fused: QuantizeLinear_2" in text
    assert "1 layer with a TF32 kernel: Conv_26" in text
    assert "1 layer that may sum in FP16: Conv_24" in text
    assert describe(parsed({"Layers": [layer("p", "PointWise", ["Half"], ["Half"])]})) == ("1 layer: 1 fp16",)


def test_control_characters_and_unknown_fields_are_taken() -> None:
    """The real JSON parts metadata with an unescaped 0x1f."""
    text = '{"Layers": [{"Name": "a", "LayerType": "gemm", "Metadata": "x\x1fy", "News": {"a": [1]}}], "Extra": 1}'
    (found,) = parse_inspection(text).layers
    assert (found.weighted, found.precision) == (True, UNKNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"), ("Layer 0: conv", "not JSON"), ("[1, 2]", "no list of layers"), ("{}", "no list of layers"),
        ('{"Layers": {"a": 1}}', "no list of layers"), ('{"Layers": [3]}', "layer 0 is neither a name nor an object"),
        ('{"Layers": [{"LayerType": "x"}]}', "layer 0 has no name"),
        ('{"Layers": [{"Name": "a", "Inputs": "b"}]}', "Inputs of layer 'a' are no list of tensors"),
        ('{"Layers": [{"Name": "a", "Outputs": [1]}]}', "Outputs of layer 'a' are no list of tensors"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_garbage_is_refused(text: str, message: str) -> None:
    with pytest.raises(MeasurementError, match="unknown form") as caught:
        parse_inspection(text)
    assert message in str(caught.value)
