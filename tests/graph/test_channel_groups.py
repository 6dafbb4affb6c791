from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantlab.graph.channel_groups import Role, apply, channel_groups, channel_peaks, constant_of
from quantlab.graph.model import Model, load_model, open_session

N_CHANNELS = 6


def _factors(size, seed=0):
    return np.exp(np.random.default_rng(seed).uniform(-3.0, 3.0, size))


def _outputs(model, feed, names=None):
    return open_session(model, threads=1, outputs=names or []).run(None, feed)


def _assert_exact(model, feed, *, expected_groups):
    """Random factors on all groups at once leave the outputs, and multiply the groups' tensors."""
    groups = channel_groups(model)
    assert len(groups) == expected_groups
    scalings = [(group, _factors(group.size, seed)) for seed, group in enumerate(groups)]
    scaled = model.with_proto(apply(model, scalings))
    tensors = [tensor for group in groups for tensor in group.tensors]
    before, after = _outputs(model, feed, tensors), _outputs(scaled, feed, tensors)
    n_outputs = len(model.proto.graph.output)
    for old, new in zip(before[:n_outputs], after[:n_outputs], strict=True):
        assert np.abs(new - old).max() <= 1e-5 * np.abs(old).max()
    wanted = {}
    for group, factors in scalings:
        for tensor, axis in group.tensors.items():
            rank = before[n_outputs + tensors.index(tensor)].ndim
            wanted[tensor] = wanted.get(tensor, 1.0) * factors.reshape([-1 if i == axis else 1 for i in range(rank)])
    for i, tensor in enumerate(tensors):
        old, new = before[n_outputs + i] * wanted[tensor], after[n_outputs + i]
        assert np.abs(new - old).max() <= 1e-5 * np.abs(old).max(), tensor
    return groups


def _between(build, middle, initializers=(), *, opset=17, second_input=None):
    """Conv, nodes from "a" to "b", Conv: x [n, 3, 8, 8]."""
    inputs = [build.value("x", ["n", 3, 8, 8])]
    if second_input is not None:
        inputs.append(build.value("z", second_input))
    return build.model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first"),
            *middle,
            helper.make_node("Conv", ["b", "w2"], ["y"], name="last"),
        ],
        inputs,
        [build.value("y", None)],
        [build.weight("w1", N_CHANNELS, 3, 3, 3), build.weight("b1", N_CHANNELS),
         build.weight("w2", 4, N_CHANNELS, 1, 1), *initializers],
        opset,
    )  # fmt: skip


def _feed(rng, *, z=None, shape=(2, 3, 8, 8)):
    feed = {"x": rng.standard_normal(shape).astype(np.float32)}
    return feed | ({"z": rng.standard_normal(z).astype(np.float32)} if z else {})


node = helper.make_node


def _int64(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _float(name, values):
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


_CHANNEL = np.linspace(-1.0, 2.0, N_CHANNELS)
TRANSPARENT = {
    "relu": ([node("Relu", ["a"], ["b"])], []),
    "leaky relu": ([node("LeakyRelu", ["a"], ["b"], alpha=0.2)], []),
    "prelu": ([node("PRelu", ["a", "s"], ["b"])], [_float("s", _CHANNEL.reshape(-1, 1, 1))]),
    "max pool": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])], []),
    "average pool": ([node("AveragePool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], []),
    "global pool": ([node("GlobalAveragePool", ["a"], ["b"])], []),
    "spatial mean": ([node("ReduceMean", ["a"], ["b"], axes=[2, 3])], []),
    "pad": ([node("Pad", ["a", "p"], ["b"])], [_int64("p", 0, 0, 1, 1, 0, 0, 1, 1)]),
    "reflecting pad": ([node("Pad", ["a", "p"], ["b"], mode="reflect")], [_int64("p", 0, 0, 1, 1, 0, 0, 1, 1)]),
    "double": ([node("Add", ["a", "a"], ["b"])], []),
    "residual": ([node("Relu", ["a"], ["r"]), node("Sub", ["a", "r"], ["b"])], []),
    "spread join": ([node("GlobalAveragePool", ["a"], ["r"]), node("Add", ["r", "a"], ["b"])], []),
    "offset": ([node("Add", ["a", "o"], ["b"])], [_float("o", _CHANNEL.reshape(-1, 1, 1))]),
    "offset of all": ([node("Sub", ["o", "a"], ["b"])], [_float("o", 0.5)]),
    "factor of all": ([node("Mul", ["f", "a"], ["b"])], [_float("f", 0.5)]),
    "divisor of all": ([node("Div", ["a", "f"], ["b"])], [_float("f", [0.5])]),
    "resize": (
        [node("Resize", ["a", "", "s"], ["b"], mode="linear", coordinate_transformation_mode="half_pixel")],
        [_float("s", [1, 1, 2, 2])],
    ),
    "transposed there and back": (
        [node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]), node("Relu", ["t"], ["u"]),
         node("Transpose", ["u"], ["b"], perm=[0, 3, 1, 2])], [],
    ),
    "reshaped there and back": (
        [node("Reshape", ["a", "s1"], ["t"]), node("Reshape", ["t", "s2"], ["b"])],
        [_int64("s1", 0, N_CHANNELS, 36), _int64("s2", 0, N_CHANNELS, 6, 6)],
    ),
    "gate": (
        [node("GlobalAveragePool", ["a"], ["p"]), node("Conv", ["p", "wg"], ["g0"], name="squeeze"),
         node("Sigmoid", ["g0"], ["g"]), node("Mul", ["g", "a"], ["b"])],
        [_float("wg", np.linspace(-1, 1, N_CHANNELS * N_CHANNELS).reshape(N_CHANNELS, N_CHANNELS, 1, 1))],
    ),
    "spatial gate": (
        [node("Conv", ["a", "wg"], ["g0"], name="mask"), node("Sigmoid", ["g0"], ["g"]),
         node("Mul", ["a", "g"], ["b"])],
        [_float("wg", np.linspace(-1, 1, N_CHANNELS).reshape(1, N_CHANNELS, 1, 1))],
    ),
    "split and joined": (
        [node("Split", ["a", "s"], ["t", "u"], axis=2), node("Concat", ["u", "t"], ["b"], axis=2)], [_int64("s", 2, 4)],
    ),
    "gathered rows": ([node("Gather", ["a", "i"], ["b"], axis=2)], [_int64("i", 3, 1)]),
    "clip from below": ([node("Clip", ["a", "lo"], ["b"])], [_float("lo", 0.0)]),
    "clip of a maximum": (
        [node("Clip", ["a", "lo", "hi"], ["b"])], [_float("lo", 0.0), _float("hi", np.finfo(np.float32).max)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
def test_factors_pass(build, name):
    middle, initializers = TRANSPARENT[name]
    model = Model.of(_between(build, middle, initializers))
    (group,) = _assert_exact(model, _feed(build.rng), expected_groups=1)
    assert {"a", "b"} <= set(group.tensors)
    assert group.tensors["a"] == group.tensors["b"] == 1
    assert not group.limits


_Z = [1, N_CHANNELS, 6, 6]
BARRIERS = {
    "sigmoid": ([node("Sigmoid", ["a"], ["b"])], []),
    "swish": ([node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])], []),
    "square": ([node("Mul", ["a", "a"], ["b"])], []),
    "channel mean": ([node("ReduceMean", ["a"], ["m"], axes=[1]), node("Sub", ["a", "m"], ["b"])], []),
    "mean of everything": ([node("ReduceMean", ["a"], ["m"]), node("Add", ["a", "m"], ["b"])], []),
    "pad with ones": ([node("Pad", ["a", "p", "v"], ["b"])], [_int64("p", 0, 0, 1, 1, 0, 0, 1, 1), _float("v", 1.0)]),
    "more channels": ([node("Pad", ["a", "p"], ["q"]), node("Slice", ["q", "s", "e", "x1"], ["b"])],
                      [_int64("p", 0, 1, 0, 0, 0, 1, 0, 0), _int64("s", 0), _int64("e", N_CHANNELS), _int64("x1", 1)]),
    "six": ([node("Clip", ["a", "lo", "hi"], ["b"])], [_float("lo", -1.0), _float("hi", 6.0)]),
    "offset of another shape": ([node("Add", ["a", "o"], ["b"])], [_float("o", np.arange(6))]),
    "sum with an input": ([node("Add", ["a", "z"], ["b"])], []),
    "joined channels": ([node("Split", ["a", "s"], ["t", "u"], axis=1), node("Concat", ["u", "t"], ["b"], axis=1)],
                        [_int64("s", 2, 4)]),
    "gathered channels": ([node("Gather", ["a", "i"], ["b"], axis=1)], [_int64("i", 5, 4, 3, 2, 1, 0)]),
    "slope from the activation": ([node("GlobalMaxPool", ["a"], ["s"]), node("PRelu", ["a", "s"], ["b"])], []),
    "reshaped into others": ([node("Reshape", ["a", "s"], ["r"]), node("Relu", ["r"], ["b"])],
                             [_int64("s", 0, 6, 4, 9)]),
    "mean over channels": ([node("ReduceMean", ["a"], ["m"], axes=[1], keepdims=0),
                            node("Unsqueeze", ["m", "s"], ["b"])], [_int64("s", 3)]),
    "moved channels": ([node("Pad", ["a", "p"], ["b"])], [_int64("p", 0, 1, 0, 0, 0, -1, 0, 0)]),
    "another reader": ([node("Relu", ["a"], ["b"]), node("Sigmoid", ["a"], ["s"]), node("Conv", ["s", "w2"], ["aux"])],
                       []),
    "mixed": ([node("Reshape", ["a", "s"], ["r"]), node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
               node("Reshape", ["t", "u"], ["b"])], [_int64("s", 0, 6, 36), _int64("u", 0, 6, 6, 6)]),
}  # fmt: skip
NOT_BARRIERS = {"reshaped into others"}  # [n, 6, 6, 6] to [n, 6, 4, 9]: the channels are the same


@pytest.mark.parametrize("name", BARRIERS)
def test_factors_stop(build, name):
    middle, initializers = BARRIERS[name]
    with_z = any("z" in part.input for part in middle)
    proto = _between(build, middle, initializers, second_input=_Z if with_z else None)
    if name == "another reader":
        proto.graph.output.append(build.value("aux", None))
    model = Model.of(proto)
    assert len(channel_groups(model)) == (name in NOT_BARRIERS)


def test_tensors_that_others_see_stop_factors(build):
    seen = _between(build, [node("Relu", ["a"], ["b"])])
    seen.graph.output.append(build.value("a", None))
    assert channel_groups(Model.of(seen)) == ()
    branch = helper.make_graph([node("Identity", ["a"], ["i"])], "branch", [], [build.value("i", None)])
    other = helper.make_graph([node("Neg", ["a"], ["j"])], "branch", [], [build.value("j", None)])
    read = _between(
        build, [node("Relu", ["a"], ["b"]), node("If", ["c"], ["k"], then_branch=branch, else_branch=other)]
    )
    read.graph.input.append(build.value("c", [], TensorProto.BOOL))
    read.graph.output.append(build.value("k", None))
    assert channel_groups(Model.of(read)) == ()


def test_weights_that_cannot_take_factors(build):
    proto = _between(build, [node("Relu", ["a"], ["b"])])
    assert len(channel_groups(Model.of(proto))) == 1
    listed = onnx.ModelProto()
    listed.CopyFrom(proto)
    listed.graph.input.append(build.value("w2", [4, N_CHANNELS, 1, 1]))  # a caller may override it
    assert channel_groups(Model.of(listed)) == ()
    computed = onnx.ModelProto()
    computed.CopyFrom(proto)
    computed.graph.node[2].input[1] = "w2n"
    computed.graph.node.insert(0, node("Neg", ["w2"], ["w2n"]))
    assert channel_groups(Model.of(computed)) == ()


def test_float16_stays_as_it_is(build):
    half = _between(build, [node("Relu", ["a"], ["b"])])
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert channel_groups(Model.of(half)) == ()


def test_unknown_channels_stop_factors(build):
    proto = build.model(
        [node("Relu", ["x"], ["r"]), node("Custom", ["r"], ["a"], domain="other"), node("Relu", ["a"], ["b"]),
         node("Conv", ["b", "w"], ["y"])],
        [build.value("x", None)], [build.value("y", None)], [build.weight("w", 4, 6, 1, 1)],
    )  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("other", 1))
    assert channel_groups(Model.of(proto)) == ()


def test_a_bound_above_is_told(build):
    model = Model.of(
        _between(build, [node("Clip", ["a", "lo", "hi"], ["b"])], [_float("lo", 0.0), _float("hi", 100.0)])
    )
    groups = _assert_exact(model, _feed(build.rng), expected_groups=1)  # no value comes near 100
    (limit,) = groups[0].limits
    assert (limit.tensor, limit.high) == ("b", 100.0)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolutions(build, operator, rank, groups):
    """6 channels to 12 by one or two groups or depthwise, with and without bias, padded, strided and dilated."""
    kernel = [3] * rank
    shape = (12, 6 // groups, *kernel) if operator == "Conv" else (6, 12 // groups, *kernel)
    model = Model.of(build.model(
        [
            node("Conv", ["x", "w0"], ["a"], name="first"),
            node(operator, ["a", "w", "b"], ["m"], group=groups, pads=[1] * 2 * rank, strides=[2] * rank, name="mid"),
            node("Relu", ["m"], ["r"]),
            node("Conv", ["r", "w3"], ["y"], name="last"),
        ],
        [build.value("x", ["n", 2, *[7] * rank])],
        [build.value("y", None)],
        [build.weight("w0", 6, 2, *[1] * rank), build.weight("w", *shape), build.weight("b", 12),
         build.weight("w3", 3, 12, *[1] * rank)],
    ))  # fmt: skip
    _assert_exact(model, _feed(build.rng, shape=(2, 2, *[7] * rank)), expected_groups=2)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,), (), None])
def test_gemm(build, transposed, bias):
    initializers = [build.weight("w1", *((5, 8) if transposed else (8, 5))),
                    build.weight("w2", *((4, 5) if transposed else (5, 4)))]  # fmt: skip
    inputs = ["x", "w1"]
    if bias is not None:
        initializers.append(build.weight("b1", *bias))
        inputs.append("b1")
    model = Model.of(build.model(
        [node("Gemm", inputs, ["h"], transB=transposed, alpha=0.5, beta=2.0, name="fc1"), node("Relu", ["h"], ["r"]),
         node("Gemm", ["r", "w2"], ["y"], transB=transposed, name="fc2")],
        [build.value("x", ["n", 8])], [build.value("y", None)], initializers,
    ))  # fmt: skip
    _assert_exact(model, _feed(build.rng, shape=(3, 8)), expected_groups=1)


def test_a_gemm_of_a_transposed_input_stops_factors(build):
    model = Model.of(build.model(
        [node("Gemm", ["x", "w1"], ["h"], name="fc1"), node("Gemm", ["h", "w2"], ["y"], transA=1, name="fc2")],
        [build.value("x", [6, 8])], [build.value("y", None)], [build.weight("w1", 8, 6), build.weight("w2", 6, 4)],
    ))  # fmt: skip
    assert channel_groups(model) == ()


def test_products_of_sequences(build):
    """The last axis is the channels: MatMul, offset, Relu, join; the weight of the last product comes first."""
    model = Model.of(build.model(
        [
            node("MatMul", ["x", "w1"], ["m"], name="up"),
            node("Add", ["b1", "m"], ["a"], name="bias"),
            node("Relu", ["a"], ["r"]),
            node("Add", ["a", "r"], ["j"]),
            node("MatMul", ["j", "w2"], ["d"], name="down"),
            node("Transpose", ["d"], ["t"], perm=[0, 2, 1]),
            node("MatMul", ["w3", "t"], ["e"], name="mix"),
            node("Relu", ["e"], ["f"]),
            node("MatMul", ["w4", "f"], ["y"], name="last"),
        ],
        [build.value("x", ["n", 7, 8])],
        [build.value("y", None)],
        [build.weight("w1", 8, 16), build.weight("b1", 16), build.weight("w2", 16, 5), build.weight("w3", 9, 5),
         build.weight("w4", 2, 9)],
    ))  # fmt: skip
    groups = _assert_exact(model, _feed(build.rng, shape=(2, 7, 8)), expected_groups=3)
    assert [dict(group.tensors) for group in groups] == [
        {"m": 2, "a": 2, "r": 2, "j": 2}, {"d": 2, "t": 1}, {"e": 1, "f": 1},
    ]  # fmt: skip
    assert groups[0].nodes == ("up", "bias", "down")


@pytest.mark.parametrize("axis", [-1, 2, None])
def test_layer_normalization_makes_what_products_read(build, axis):
    attributes = {} if axis is None else {"axis": axis}
    model = Model.of(build.model(
        [
            node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm", **attributes),
            node("MatMul", ["n", "w1"], ["q"], name="query"),
            node("Gather", ["n", "first"], ["t"], axis=1),
            node("Gemm", ["t", "w2"], ["k"], name="head"),
        ],
        [build.value("x", ["n", 4, 8])], [build.value("q", None), build.value("k", None)],
        [build.weight("g", 8), build.weight("b", 8), build.weight("w1", 8, 3), build.weight("w2", 8, 2),
         build.const("first", 0, np.int64)],
    ))  # fmt: skip
    (group,) = _assert_exact(model, _feed(build.rng, shape=(2, 4, 8)), expected_groups=1)
    assert dict(group.tensors) == {"n": 2, "t": 1}
    assert [absorber.op_type for absorber in group.of(Role.PRODUCER)] == ["LayerNormalization"]


@pytest.mark.parametrize("operator", ["InstanceNormalization", "BatchNormalization"])
def test_other_normalizations_make_channels(build, operator):
    more = ["mean", "var"] if operator == "BatchNormalization" else []
    middle = [node("Sigmoid", ["a"], ["s"]), node(operator, ["s", "g", "o", *more], ["b"], name="norm")]
    stored = [build.weight("g", N_CHANNELS), build.weight("o", N_CHANNELS), build.weight("mean", N_CHANNELS),
              build.const("var", np.ones(N_CHANNELS))]  # fmt: skip
    (group,) = _assert_exact(
        Model.of(_between(build, middle, stored[: 2 + len(more)])), _feed(build.rng), expected_groups=1
    )
    assert group.nodes == ("norm", "last")


@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_a_factor_by_channel_parts_two_groups(build, operator):
    factor = build.const("f", np.linspace(0.5, 2.0, N_CHANNELS).reshape(-1, 1, 1))
    model = Model.of(_between(build, [node(operator, ["a", "f"], ["b"], name="scale")], [factor]))
    groups = _assert_exact(model, _feed(build.rng), expected_groups=2)
    assert [group.nodes for group in groups] == [("first", "scale"), ("scale", "last")]


def test_shared_constants_are_copied(build):
    """One weight is both layers' of a residual pair, and the auxiliary output's, which must not notice."""
    proto = build.model(
        [
            node("Conv", ["x", "w0"], ["a"], name="stem"),
            node("Conv", ["a", "w"], ["c"], name="one"),
            node("Relu", ["c"], ["r"]),
            node("Conv", ["r", "w"], ["d"], name="two"),
            node("Conv", ["d", "w3"], ["y"], name="last"),
            node("Conv", ["x4", "w"], ["aux"], name="other"),
        ],
        [build.value("x", ["n", 3, 5, 5]), build.value("x4", ["n", 4, 5, 5])],
        [build.value("y", None), build.value("aux", None)],
        [build.weight("w0", 4, 3, 1, 1), build.weight("w", 4, 4, 1, 1), build.weight("w3", 2, 4, 1, 1)],
    )
    feed = _feed(build.rng, shape=(2, 3, 5, 5)) | {"x4": build.rng.standard_normal((2, 4, 5, 5)).astype(np.float32)}
    _assert_exact(Model.of(proto), feed, expected_groups=3)
    model = Model.of(proto)
    scaled = apply(model, [(channel_groups(model)[1], _factors(4))])
    stored = {tensor.name: tensor for tensor in scaled.graph.initializer}
    assert stored["w"] == next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    assert len({part.input[1] for part in scaled.graph.node if part.name in ("one", "two", "other")}) == 3
    del proto.graph.node[5]  # without the auxiliary output nobody reads the original any more
    del proto.graph.output[1], proto.graph.input[1]
    model = Model.of(proto)
    names = {tensor.name for tensor in apply(model, [(channel_groups(model)[1], _factors(4))]).graph.initializer}
    assert len(names) == 4
    assert "w" not in names


def test_a_residual_block_puts_both_into_one_weight(build):
    """The depthwise convolution reads and makes the same group: rows and columns of its weight cancel out."""
    middle = [node("Conv", ["a", "wd"], ["d"], group=N_CHANNELS, pads=[1, 1, 1, 1], name="depthwise"),
              node("Add", ["a", "d"], ["b"])]  # fmt: skip
    model = Model.of(_between(build, middle, [build.weight("wd", N_CHANNELS, 1, 3, 3)]))
    (group,) = _assert_exact(model, _feed(build.rng), expected_groups=1)
    assert group.nodes == ("first", "depthwise", "last")


def test_external_weights(build, save_external):
    proto = _between(build, [node("Relu", ["a"], ["b"])])
    model = load_model(save_external(proto))
    assert model.data_folder is not None
    _assert_exact(model, _feed(build.rng), expected_groups=1)


def test_peaks_of_constants(build):
    model = Model.of(_between(build, [node("Relu", ["a"], ["b"])]))
    (group,) = channel_groups(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}
    (made,), (read,) = group.of(Role.PRODUCER), group.of(Role.CONSUMER)
    assert np.array_equal(channel_peaks(made, constant_of(model, made)), np.abs(weights["w1"]).max(axis=(1, 2, 3)))
    assert np.array_equal(channel_peaks(read, constant_of(model, read)), np.abs(weights["w2"]).max(axis=(0, 2, 3)))


@pytest.mark.parametrize(
    "factors", [np.ones(3), np.zeros(N_CHANNELS), -np.ones(N_CHANNELS), np.full(N_CHANNELS, np.nan)]
)
def test_wrong_factors_are_refused(build, factors):
    model = Model.of(_between(build, [node("Relu", ["a"], ["b"])]))
    with pytest.raises(ValueError, match="positive factors"):
        apply(model, [(channel_groups(model)[0], factors)])


class _Grown:
    """A random graph, grown node by node from an image of 4 channels of 6 x 6."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.stored, self.n = [], [], 0

    def weight(self, *shape):
        name = f"w{len(self.stored)}"
        self.stored.append(_float(name, self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))))
        return name

    def put(self, op, inputs, **attributes):
        self.n += 1
        self.nodes.append(node(op, inputs, [f"t{self.n}"], name=f"n{self.n}", **attributes))
        return f"t{self.n}"

    def conv(self, x, channels, to):
        return self.put("Conv", [x, self.weight(to, channels, 1, 1), self.weight(to)])

    def grow(self, step, x, channels):
        if step == "conv":
            to = int(self.rng.integers(2, 7))
            return self.conv(x, channels, to), to
        if step == "depthwise":
            inputs = [x, self.weight(channels, 1, 3, 3)]
            return self.put("Conv", inputs, group=channels, pads=[1, 1, 1, 1]), channels
        if step == "residual":
            inner = self.put("Relu", [self.conv(x, channels, 5)])
            return self.put("Add", [x, self.conv(inner, 5, channels)]), channels
        if step == "gate":
            pooled = self.put("GlobalAveragePool", [x])
            return self.put("Mul", [x, self.put("Sigmoid", [self.conv(pooled, channels, channels)])]), channels
        if step == "pool":
            return self.put("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), channels
        return self.put(step, [x]), channels


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(st.sampled_from(["conv", "depthwise", "residual", "gate", "pool", "Relu", "LeakyRelu"]), max_size=7),
)
def test_random_graphs_keep_their_outputs(seed, steps):
    grown = _Grown(seed)
    x, channels = grown.conv("x", 4, 6), 6
    for step in steps:
        x, channels = grown.grow(step, x, channels)
    x = grown.put("Flatten", [grown.put("GlobalAveragePool", [x])])
    y = grown.put("Gemm", [x, grown.weight(3, channels), grown.weight(3)], transB=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        grown.nodes, "grown", [value("x", TensorProto.FLOAT, ["n", 4, 6, 6])], [value(y, TensorProto.FLOAT, None)],
        grown.stored,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    # Each layer but the last makes a group of its own, unless a sum ties it to another.
    layers = sum(part.op_type in ("Conv", "Gemm") for part in proto.graph.node)
    ties = steps.count("residual") + steps.count("gate")  # what a gate's own layer makes ends in a Sigmoid
    feed = {"x": grown.rng.standard_normal((3, 4, 6, 6)).astype(np.float32)}
    _assert_exact(Model.of(proto), feed, expected_groups=layers - 1 - ties)
