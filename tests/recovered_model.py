"""A recovery whose result is known: what ``recover`` is replaced by in tests of all that comes before and after it.

It works on the tiny model of the command line's tests, and does two things. ``equalize`` doubles every tensor between
the convolution and the last layer, and halves the last layer's weights: exact, in INT8 too, so the recovered graph must
give the very outputs of the one that was not recovered; with the ranges of the other one it would be far off.
``round`` moves one code of the convolution's weight by 20, which shows at the outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, numpy_helper

from quantlab.calibrators.quantize import INT8_WEIGHT, quantize, weight_scales
from quantlab.calibrators.table import CalibrationTable, TensorEntry
from quantlab.datasets import Dataset
from quantlab.graph.prepare import Prepared
from quantlab.graph.weights import RoundedWeight
from quantlab.progress import Narrator
from quantlab.recovery.protocol import State
from quantlab.recovery.record import Diagnosis, LayerShare, RecoveryRecord, StepRecord
from quantlab.recovery.recover import Recovered, RecoverSettings
from quantlab.statistics.interval import Interval

DOUBLED = ("c1", "r1", "g1", "f1")
MOVED_BY = 20


def recover(
    prepared: Prepared, dataset: Dataset, table: CalibrationTable, settings: RecoverSettings, narrator: Narrator
) -> Recovered:
    """As `quantlab.recovery.recover.recover`, with an unfinished step left in the settings' folder."""
    state = State(prepared, table)
    if "equalize" in settings.steps:
        state = replace(state.with_proto(_doubled(prepared.model.proto)), table=_doubled_table(table))
    if "round" in settings.steps:
        state = replace(state, rounded={"w1": _moved(state.model.proto)})
    if settings.folder is not None:
        settings.folder.mkdir(parents=True, exist_ok=True)
        (settings.folder / "step").write_text("finished")
    narrator.say(f"recovering by {', '.join(settings.steps)}")
    made = record(settings.steps, len(dataset))
    return Recovered(state, made, (), settings.target.name, table.sha256, settings.exclude)


def record(names: tuple[str, ...], n: int) -> RecoveryRecord:
    """Equalize and round are kept, all others dropped."""
    steps = tuple(
        StepRecord(name, "strength 0.5", True, 20.0 + i, 21.0 + i, Interval(0.5, 1.5, 0.95), 1.25, ("w1",), ())
        if name in ("equalize", "round")
        else StepRecord(name, "", False, None, None, None, 0.0, (), ("no layer of that kind",))
        for i, name in enumerate(names)
    )
    shares = (LayerShare("conv", "weight", 0.75), LayerShare("r1", "activation", 0.25))
    return RecoveryRecord(steps, n - n // 4, n // 4, 20.0, 22.5, Diagnosis(24.0, 22.0, 20.0, shares))


def _doubled(proto: ModelProto) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        factor = {"w1": 2.0, "b1": 2.0, "w2": 0.5}.get(tensor.name)
        if factor is not None:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return result


def _doubled_table(table: CalibrationTable) -> CalibrationTable:
    return replace(table, tensors=tuple(_twice(entry) if entry.name in DOUBLED else entry for entry in table.tensors))


def _twice(entry: TensorEntry) -> TensorEntry:
    ranges = {
        scheme: {method: replace(one, low=2 * one.low, high=2 * one.high) for method, one in by_method.items()}
        for scheme, by_method in entry.ranges.items()
    }
    return replace(entry, minimum=2 * entry.minimum, maximum=2 * entry.maximum, ranges=ranges)


def _moved(proto: ModelProto) -> RoundedWeight:
    weight = next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == "w1")
    scales = weight_scales(weight, 0, INT8_WEIGHT)
    codes = quantize(weight, scales.reshape(-1, 1, 1, 1), 0, INT8_WEIGHT).astype(np.int8)
    codes[0, 0, 0, 0] += -MOVED_BY if codes[0, 0, 0, 0] > 0 else MOVED_BY
    return RoundedWeight(codes, scales, 0)
