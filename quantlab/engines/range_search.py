"""Choosing a range for each tensor by the noise at a model's outputs.

The quantized graph is run with the scales and zero-points of its activations as inputs, so that trying another range is
feeding another number: no new session, no new file. Tensors are gone through in graph order; for each of them
every other range is tried, and kept if the noise falls: in sum, and by more than `LIKELY` standard errors over the
samples, as the caller counts them. A candidate that is already worse on the first few samples is not run on the others.
A sweep that gained much is followed by another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from quantlab.calibrators.quantize import Parameters, Scheme
from quantlab.engines.output_noise import Probe, Run, float_outputs
from quantlab.errors import CalibrationError
from quantlab.graph.model import Model, open_session
from quantlab.progress import Narrator

LIKELY = 1.0
"""Standard errors over the samples by which the noise must fall for one tensor's range."""

SWEEPS, WORTH_ANOTHER_DB = 3, 0.5
"""Sweeps at most, and the gain of one from which on another may gain too."""

_FIRST = 8
_SAME = 0.01  # scales that differ by less are not told apart
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Group:
    """Activations that have the same scale and zero-point, whatever these are.

    Attributes:
        tensors: Names of the activations, in graph order; the first is the group's name.
        scales: Names of their scales, inputs of the graph.
        zeros: Names of their zero-points, inputs of the graph.
    """

    tensors: tuple[str, ...]
    scales: tuple[str, ...]
    zeros: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.tensors[0]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A range that a group may have.

    Attributes:
        label: Whose range it is.
        grid: Its scale and zero-point.
    """

    label: str
    grid: Parameters


Falls = Callable[[NDArray[np.float64], NDArray[np.float64]], float]
"""By how many standard errors the noise falls, from that before and that after, by sample and output, (N, O)."""


class RangeSearch:
    """A quantized graph with its scales as inputs.

    Attributes:
        groups: Activations that have one grid, in graph order.
    """

    def __init__(
        self,
        model: Model,
        proto: ModelProto,
        scheme: Scheme,
        probe: Probe,
        falls: Falls,
        sharing: Mapping[str, Collection[str]],
        *,
        hopeless: float = 0.0,
        config: dict[str, str] | None = None,
    ) -> None:
        """Open the graph.

        Args:
            model: What it is made of.
            proto: The quantized graph, which is changed; its biases are in floating point, for INT32 holds the scales.
            scheme: Grid of its activations.
            probe: Samples, with the outputs of the FP32 graph.
            falls: Tells a better candidate.
            sharing: Tensors that have the grid of a tensor, itself among them, by tensor; alone where it is missing.
            hopeless: Standard errors on the first samples up to which a candidate is not run on the others.
            config: Session options.
        """
        self.probe, self.scheme, self.falls, self.hopeless = probe, scheme, falls, hopeless
        self.groups = _promote_scales(proto, sharing)
        self.session = open_session(model.with_proto(proto), threads=1, config=config, error=CalibrationError)
        self.outputs = float_outputs(self.session)
        sizes = np.cumsum(probe.sizes)
        self.first = int(np.searchsorted(sizes, min(_FIRST, probe.n))) + 1  # batches, and the samples in them
        self.n_first = int(sizes[self.first - 1])

    def choose(
        self, start: Mapping[str, Candidate], candidates: Mapping[str, Sequence[Candidate]], narrator: Narrator
    ) -> dict[str, Candidate]:
        """Sweep over the groups while it pays.

        Args:
            start: What each group has, by its name.
            candidates: What some of them may have.
            narrator: Told of progress.

        Returns:
            What each group is to have, by its name.
        """
        chosen = dict(start)
        searched = [group for group in self.groups if candidates.get(group.name)]
        noise = self.noise(chosen)
        for _ in range(SWEEPS):
            before = self.probe.sqnr_db(noise)
            for group in narrator.track(searched, len(searched), "choosing"):
                noise = self._improve_one(group, candidates[group.name], chosen, noise)
            if self.probe.sqnr_db(noise) < before + WORTH_ANOTHER_DB:
                break
        return chosen

    def noise(self, chosen: Mapping[str, Candidate]) -> NDArray[np.float64]:
        """Noise with a range for each group, by sample and output, (N, O)."""
        return self.probe.noise(self._run(chosen))

    def _run(self, chosen: Mapping[str, Candidate]) -> Run:
        """Runs the graph with some scales and zero-points."""
        extra: dict[str, NDArray[np.generic]] = {}
        for group in self.groups:
            grid = chosen[group.name].grid
            extra |= dict.fromkeys(group.scales, np.array(grid.scale, np.float32))
            extra |= dict.fromkeys(group.zeros, np.array(grid.zero_point, self.scheme.dtype))
        return lambda feed: self.session.run(self.outputs, {**feed, **extra})

    def _improve_one(
        self, group: Group, candidates: Sequence[Candidate], chosen: dict[str, Candidate], noise: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Try every other range of one group; what is better goes into ``chosen``."""
        tried = [chosen[group.name].grid]
        for candidate in candidates:
            if any(alike(candidate.grid, other) for other in tried):
                continue
            tried.append(candidate.grid)
            found = self._better(noise, self._run({**chosen, group.name: candidate}))
            if found is not None:
                noise, chosen[group.name] = found, candidate
        return noise

    def _better(self, noise: NDArray[np.float64], run: Run) -> NDArray[np.float64] | None:
        """The noise of a candidate, if it is surely less; None if it is not."""
        first = self.probe.noise(run, 0, self.first)
        if not self.falls(noise[: self.n_first], first) > self.hopeless:
            return None
        found = np.concatenate([first, self.probe.noise(run, self.first)])
        better = self.probe.sqnr_db(found) > self.probe.sqnr_db(noise) and self.falls(noise, found) > LIKELY
        return found if better else None


def log_falls(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """By how many standard errors over the samples the noise falls.

    Its logarithm is compared, sample by sample, so that neither a few hard samples nor a loud output decide alone.

    Args:
        before: Noise by sample and output, (N, O).
        after: The same samples' noise with other ranges, (N, O).
    """
    falls = np.log(np.maximum(before, _TINY) / np.maximum(after, _TINY)).mean(axis=1)
    fall = float(falls.sum())
    error = float(np.std(falls, ddof=1)) * math.sqrt(len(falls)) if len(falls) > 1 else 0.0
    if error > 0.0:
        return fall / error
    return math.copysign(math.inf, fall) if fall else 0.0


def alike(a: Parameters, b: Parameters) -> bool:
    """Whether two grids are not told apart."""
    return abs(a.scale - b.scale) <= _SAME * max(a.scale, b.scale) and a.zero_point == b.zero_point


def _promote_scales(proto: ModelProto, sharing: Mapping[str, Collection[str]]) -> tuple[Group, ...]:
    """Make scales and zero-points of the activations' quantizers graph inputs, in place; in graph order."""
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    pairs: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored and not stored[node.input[1]].dims:
            pairs[node.input[0]] = (node.input[1], node.input[2])
    promoted = dict.fromkeys(name for pair in pairs.values() for name in pair)
    kept = [tensor for tensor in graph.initializer if tensor.name not in promoted]
    for name in promoted:
        graph.input.append(helper.make_tensor_value_info(name, stored[name].data_type, []))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    groups: list[Group] = []
    left = dict.fromkeys(pairs)
    while left:
        first = next(iter(left))
        together = {first, *sharing.get(first, ())}
        tensors = tuple(tensor for tensor in left if tensor in together)
        scales, zeros = zip(*(pairs[tensor] for tensor in tensors), strict=True)
        groups.append(Group(tensors, scales, zeros))
        left = dict.fromkeys(tensor for tensor in left if tensor not in together)
    return tuple(groups)


__all__ = ["LIKELY", "Candidate", "Falls", "Group", "RangeSearch", "alike", "log_falls"]
