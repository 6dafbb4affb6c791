"""What a recovery step is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from quantlab.calibrators.extremes import ChannelExtremes
from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets.protocol import Dataset
from quantlab.engines.output_noise import Probe
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import Quantized, quantize_model
from quantlab.graph.targets import TargetProfile
from quantlab.graph.weights import RoundedWeight
from quantlab.progress import Narrator


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A model on its way through the steps.

    Attributes:
        prepared: The floating-point graph. Steps before the rounding keep what it computes, up to float32's rounding;
            values of its initializers change, and where a step says so, its nodes.
        table: Ranges of its activations; its method's are used.
        rounded: Codes and scales of weights that were rounded, by initializer.
        target: The floating-point graph that the quantized one is to follow, once biases make up for quantization;
            None while that is `prepared` itself.
    """

    prepared: Prepared
    table: CalibrationTable
    rounded: Mapping[str, RoundedWeight] = field(default_factory=lambda: MappingProxyType({}))
    target: Prepared | None = None

    @property
    def model(self) -> Model:
        """The floating-point model."""
        return self.prepared.model

    def quantized(self, target: TargetProfile, exclude: Collection[str] = ()) -> Quantized:
        """The Q/DQ graph that the writer makes of it.

        Raises:
            QuantlabError: As `quantize_model`.
        """
        return quantize_model(self.model, self.table, target, exclude, rounded=self.rounded)

    def with_proto(self, proto: ModelProto) -> State:
        """The same with another graph in place of its own."""
        return replace(self, prepared=replace(self.prepared, model=self.model.with_proto(proto)))


class Observations(Protocol):
    """Looks at activations of a floating-point graph on the samples that the steps learn from."""

    def ranges(self, state: State, tensors: Collection[str]) -> CalibrationTable:
        """The table of ``state`` with the entries of ``tensors`` observed anew on its graph, added where missing."""
        ...

    def channels(self, state: State, axes: Mapping[str, int]) -> Mapping[str, ChannelExtremes]:
        """Minimum and maximum of each channel of some tensors.

        Args:
            state: Its graph is run.
            axes: Tensors, with the axis of their channels.
        """
        ...


class Keeper(Protocol):
    """Keeps what a step made of a layer, in case it is interrupted."""

    def layer(self, step: str, number: int) -> dict[str, NDArray[np.generic]] | None:
        """What the step made of its layer of this number; None if it is not there."""
        ...

    def keep_layer(self, step: str, number: int, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep it."""
        ...


class NothingKept:
    """Keeps nothing."""

    def layer(self, step: str, number: int) -> dict[str, NDArray[np.generic]] | None:
        """See `Keeper.layer`."""
        return None

    def keep_layer(self, step: str, number: int, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """See `Keeper.keep_layer`."""


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What steps work with.

    Attributes:
        target: Rules of the quantized graph.
        exclude: Names of layers that stay in floating point.
        fit: Samples that the steps learn from; those that judge them are others.
        batches: Inputs of some of these samples, in small batches, by input name.
        search: Some of these samples, with the outputs of the FP32 graph.
        observations: Looks at activations on these samples.
        shares: Share of the noise at the model's outputs that the quantization of each activation makes alone, by
            tensor; they add up to 1. Empty if it was not measured.
        moving: Whether `shift` is among the steps that follow.
        threads: Workers.
        narrator: Told of progress.
        kept: Keeps finished layers of a step, to go on from after an interruption.
    """

    target: TargetProfile
    exclude: tuple[str, ...]
    fit: Dataset
    batches: Sequence[Mapping[str, NDArray[np.generic]]]
    search: Probe
    observations: Observations
    shares: Mapping[str, float]
    moving: bool
    threads: int
    narrator: Narrator
    kept: Keeper = field(default_factory=NothingKept)


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A state that may be better.

    Attributes:
        label: What tells it from the step's other proposals, such as ``strength 0.5``; empty if there is but one.
        make: Makes the state.
        changed: Names of the layers or tensors that were changed.
    """

    label: str
    make: Callable[[], State]
    changed: tuple[str, ...]

    @classmethod
    def of(cls, label: str, state: State, changed: tuple[str, ...]) -> Proposal:
        """A proposal of a state that is there already."""
        return cls(label, lambda: state, changed)

    @property
    def state(self) -> State:
        """The state. It may be made anew each time: all proposals of a step at once would be as many models."""
        return self.make()


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """What a step proposes.

    Attributes:
        proposals: Proposals, the cautious first; empty if there is nothing to do.
        notes: What was left out and why, one sentence each; if there is no proposal, the reason.
    """

    proposals: Sequence[Proposal]
    notes: tuple[str, ...] = ()


class Step(Protocol):
    """One way of recovering accuracy: proposes, and is judged by others.

    Attributes:
        name: Its name in ``--recover``, in files and in the documentation.
        summary: What it does, in a few words, for tables.
    """

    name: str
    summary: str

    def propose(self, state: State, context: Context) -> Proposals:
        """Proposals from ``state``; the state itself is not changed.

        Raises:
            CalibrationError: If the model fails on a sample.
        """
        ...


__all__ = ["Context", "Keeper", "NothingKept", "Observations", "Proposal", "Proposals", "State", "Step"]
