"""The noise that single channels of a tensor make at a model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, helper

from quantlab.calibrators.quantize import Parameters, Scheme, fake_quantize
from quantlab.errors import CalibrationError
from quantlab.graph.index import GraphIndex, implicit_inputs
from quantlab.graph.model import open_session
from quantlab.graph.session import first_line
from quantlab.progress import Narrator
from quantlab.recovery.protocol import State

FloatArray = NDArray[np.float64]
Values = Mapping[str, NDArray[Any]]

_MOST_BYTES = 200e6


class Tail:
    """The part of a graph behind a tensor, up to the model's outputs.

    Attributes:
        tensor: The tensor.
        further: Other tensors that the part reads and that are made before it.
        may_split: Whether the model takes batches of any size.
        head: Session of the whole graph, which gives what the part reads.
        session: Session of the part.
    """

    def __init__(self, state: State, tensor: str, further: Sequence[str], proto: ModelProto, threads: int) -> None:
        self.tensor, self.further = tensor, list(further)
        self.may_split = state.prepared.fixed_batch is None
        self.head = open_session(
            state.model, threads=threads, outputs=[tensor, *further], log_severity=4, error=CalibrationError
        )
        self.session = open_session(
            state.model.with_proto(proto), threads=threads, log_severity=4, error=CalibrationError
        )

    @classmethod
    def of(cls, state: State, tensor: str, threads: int) -> Tail | None:
        """The part behind a tensor; None if no output depends on it, or it reads tensors of unknown type besides."""
        source = state.model.proto
        index = GraphIndex(source.graph)
        changed, nodes, used = {tensor}, [], set[str]()
        for node in source.graph.node:
            names = {*node.input, *implicit_inputs(node)} - {""}
            if names & changed:
                nodes.append(node)
                changed.update(node.output)
                used |= names
        outputs = [value for value in source.graph.output if value.name in changed]
        further = sorted(name for name in used - changed if name not in index.initializers and name not in index.inputs)
        fed = [tensor, *further, *(name for name in index.inputs if name in used)]
        if not outputs or not all(index.elem_type(name) for name in fed):
            return None
        graph = GraphProto(name="tail", node=nodes, output=outputs)
        graph.initializer.extend(stored for stored in source.graph.initializer if stored.name in used)
        for name in fed:
            graph.input.append(helper.make_tensor_value_info(name, index.elem_type(name), index.shape(name)))
        proto = ModelProto(ir_version=source.ir_version, graph=graph, functions=source.functions)
        proto.opset_import.extend(source.opset_import)
        return cls(state, tensor, further, proto, threads)

    def feeds(self, batches: Iterable[Values], n: int) -> list[Values]:
        """What the part reads of some samples.

        Args:
            batches: Inputs of the model, in batches.
            n: How many samples are enough; there are fewer where they take more than about 200 MB.

        Raises:
            CalibrationError: If the model fails.
        """
        names = [self.tensor, *self.further]
        read = {value.name for value in self.session.get_inputs()}
        feeds: list[Values] = []
        taken, size = 0, 0
        for batch in batches:
            most = n - taken if self.may_split else None
            feed = {name: value[:most] for name, value in batch.items()}
            try:
                found = self.head.run(names, feed)
            except Exception as cause:  # onnxruntime's exceptions share no base class
                raise CalibrationError("the model failed on calibration samples", got=first_line(cause)) from cause
            feeds.append(dict(zip(names, found, strict=True)) | {name: feed[name] for name in feed if name in read})
            taken += len(next(iter(feed.values())))
            size += sum(value.nbytes for value in feeds[-1].values())
            if taken >= n or size > _MOST_BYTES:
                break
        return feeds

    def errors(
        self, feeds: Sequence[Values], grid: Parameters, scheme: Scheme, channels: NDArray[np.intp], narrator: Narrator
    ) -> FloatArray:
        """Squared error at the outputs if one channel alone is quantized, for each of some channels.

        Args:
            feeds: From `feeds`.
            grid: Scale and zero-point of the tensor.
            scheme: Its grid.
            channels: Which channels, of axis 1.
            narrator: Told of progress.

        Returns:
            The error relative to the power of each output, summed over outputs and feeds, (C,); 0 for other channels.

        Raises:
            CalibrationError: If the model fails.
        """
        result = np.zeros(feeds[0][self.tensor].shape[1] if feeds else 0)
        for feed in narrator.track(feeds, len(feeds), f"noise of {self.tensor}"):
            exact = self._outputs(feed)
            value = feed[self.tensor]
            for channel in channels:
                noisy = value.copy()
                noisy[:, channel] = fake_quantize(value[:, channel], grid.scale, grid.zero_point, scheme)
                outputs = self._outputs({**feed, self.tensor: noisy})
                result[channel] += sum(_relative(a, b) for a, b in zip(exact, outputs, strict=True))
        return result

    def _outputs(self, feed: Values) -> list[FloatArray]:
        try:
            found = self.session.run(None, dict(feed))
        except Exception as cause:  # onnxruntime's exceptions share no base class
            raise CalibrationError(f"the model failed behind {self.tensor!r}", got=first_line(cause)) from cause
        return [np.asarray(value, np.float64) for value in found if np.issubdtype(value.dtype, np.floating)]


def _relative(exact: FloatArray, value: FloatArray) -> float:
    seen = np.isfinite(exact) & np.isfinite(value)
    power = float(np.sum(exact[seen] ** 2))
    return float(np.sum((value[seen] - exact[seen]) ** 2)) / power if power > 0.0 else 0.0
