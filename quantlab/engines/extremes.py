"""Min-max calibration alone: nothing is counted, so it costs little more than inference.

Most of what counting costs is carrying activations out of the session. Here only tensors that a quantized graph reads
are observed: the output of a Relu or Clip, not the input that it is fused with. No value of such an output is below the
activation's own lower bound, so its maximum is enough, and ONNX Runtime takes that inside the session, where the values
still are in the cache, by a global max pooling. The other tensors are fetched.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, helper

from quantlab.calibrators.extremes import Extremes
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.engines.observation import FloatArray, broken_samples, derived_tensors, observed_tensors, run_all
from quantlab.graph.index import GraphIndex
from quantlab.graph.prepare import Prepared
from quantlab.progress import Narrator


@dataclass(frozen=True, slots=True)
class _Pooled:
    """A tensor whose maximum is taken in the session.

    Attributes:
        output: Name of the maxima, one a channel.
        bound: No value is below it.
        window: Values that each maximum stands for.
    """

    output: str
    bound: float
    window: int


def extreme_tensors(prepared: Prepared) -> tuple[str, ...]:
    """Names of the float32 activations that a quantized graph reads, in graph order.

    Left out are inputs of a Relu or Clip that nothing else reads: runtimes fuse these away.
    """
    index = GraphIndex(prepared.model.proto.graph)
    names = observed_tensors(prepared)
    fused = {rule.source for rule in derived_tensors(prepared, names).values() if index.uses(rule.source) == 1}
    return tuple(name for name in names if name not in fused or name in index.inputs)


def observe_extremes(
    prepared: Prepared, dataset: Dataset, tensors: Sequence[str], threads: int, narrator: Narrator
) -> tuple[dict[str, Extremes], dict[str, str]]:
    """Exact minimum and maximum of ``tensors`` over the whole data set.

    The minimum of a Relu or Clip output is the activation's lower bound, whether or not a value reached it. A NaN in
    such an output may go unseen there, for ONNX Runtime's pooling drops it; it shows in the tensors that it reaches.

    Args:
        prepared: The graph to run.
        dataset: Samples.
        tensors: Activations.
        threads: Workers, at least 1.
        narrator: Told of progress.

    Returns:
        Extremes by name; and of tensors with NaN or infinite values the first sample, by name, that made them.

    Raises:
        CalibrationError: If ONNX Runtime fails on a sample, which is named.
        DataError: From the data set.
    """
    proto = ModelProto()
    proto.CopyFrom(prepared.model.proto)
    pooled = _add_pooling(proto, prepared, tensors)
    fetched = [pooled[name].output if name in pooled else name for name in tensors]
    names = dict(zip(fetched, tensors, strict=True))
    found = {name: Extremes() for name in tensors}
    non_finite: dict[str, str] = {}
    lock = threading.Lock()

    def take(values: Mapping[str, FloatArray], group: Sequence[Sample]) -> None:
        with lock:  # looking at values takes a hundredth of making them
            for output, value in values.items():
                name = names[output]
                rule, before = pooled.get(name), found[name].non_finite
                if rule is None:
                    found[name].add(value)
                else:
                    found[name].add_maxima(value, rule.bound, value.size * rule.window)
                if found[name].non_finite > before:
                    non_finite[name] = min([*broken_samples(value, group), *filter(None, [non_finite.get(name)])])

    augmented = dataclasses.replace(prepared, model=prepared.model.with_proto(proto))
    run_all(augmented, dataset, fetched, take, threads, narrator)
    return found, non_finite


def _add_pooling(proto: ModelProto, prepared: Prepared, tensors: Sequence[str]) -> dict[str, _Pooled]:
    """Give every Relu or Clip output of known height and width a global max pooling, in place."""
    index = GraphIndex(proto.graph)
    pooled = {}
    for name, rule in derived_tensors(prepared, observed_tensors(prepared)).items():
        shape = index.shape(name)
        if name not in tensors or not math.isfinite(rule.low) or shape is None or len(shape) != 4:
            continue
        height, width = shape[2:]
        if isinstance(height, int) and isinstance(width, int) and height * width > 0:
            output = index.fresh(f"{name}_maxima")
            proto.graph.node.append(helper.make_node("GlobalMaxPool", [name], [output], name=output))
            pooled[name] = _Pooled(output, rule.low, height * width)
    return pooled
