"""Data sets in memory, a narrator that listens, and one calibrated build."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from stand_in import HostStaging, StandIn

from quantlab.calibrators.tensorrt import CalibrationData, Calibrator, make_calibrator
from quantlab.calibrators.tensorrt_cache import Algorithm
from quantlab.datasets import InputStatistics, Manifest, ManifestEntry, Sample
from quantlab.degradation import Degradation
from quantlab.files import sha256_bytes

T = TypeVar("T")
Arrays = Mapping[str, NDArray[np.generic]]


def rows(n: int, *shape: int, seed: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


class MemoryData:
    """Samples in memory; ``later`` changes what passes after the first one give."""

    name = "memory"
    class_names = None

    def __init__(
        self,
        inputs: Mapping[str, Iterable[NDArray[np.generic]]],
        later: Callable[[int, Arrays], Arrays | None] | None = None,
        preprocess_sha256: str | None = None,
        degradations: tuple[Degradation, ...] = (),
    ) -> None:
        names = list(inputs)
        self.samples = [
            Sample(f"s{i}", dict(zip(names, arrays, strict=True)), None, sha256_bytes(b"".join(map(bytes, arrays))))
            for i, arrays in enumerate(zip(*(list(each) for each in inputs.values()), strict=True))
        ]
        self.later = later
        self.preprocess_sha256 = preprocess_sha256
        self.degradations = degradations
        self.passes = 0
        self.open_passes = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        self.passes += 1
        later = self.later if self.passes > 1 else None
        self.open_passes += 1
        try:
            for index, sample in enumerate(self.samples):
                inputs = later(index, sample.inputs) if later else sample.inputs
                if inputs is None:
                    return
                yield Sample(sample.id, inputs, None, sample.sha256)
        finally:
            self.open_passes -= 1

    @property
    def manifest(self) -> Manifest:
        return Manifest(tuple(ManifestEntry(s.id, s.sha256, s.label) for s in self.samples))

    def statistics(self, n: int = 64) -> tuple[InputStatistics, ...]:
        return ()

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "memory", "preprocess_sha256": self.preprocess_sha256}


@dataclass
class Listener:
    """A narrator that keeps what it hears."""

    said: list[str] = field(default_factory=list)
    warned: list[Degradation] = field(default_factory=list)
    tracked: list[tuple[str, int, int]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, degradation: Degradation) -> None:
        self.warned.append(degradation)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        self.tracked.append((what, total, 0))
        place = len(self.tracked) - 1
        for n, item in enumerate(items, start=1):
            self.tracked[place] = (what, total, n)
            yield item


@dataclass
class Case:
    """One build with a calibrator.

    Attributes:
        trt: The stand-in.
        calibrator: Made for it.
        inputs: Of the network: type and shape by name.
        configured: Whether the calibrator configures the build; else it is only set.
    """

    trt: StandIn
    calibrator: Calibrator
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    configured: bool = True

    def build(self) -> bytes | None:
        network = self.trt.network(**self.inputs)
        config = self.trt.builder.create_builder_config()
        if self.configured:
            self.calibrator.configure(config, self.trt.builder, network)
        else:
            config.int8_calibrator = self.calibrator.native
        return self.trt.build(network, config)


IMAGE = {"x": ("FLOAT", (-1, 3, 4))}


def case(
    trt: StandIn,
    algorithm: Algorithm = Algorithm.ENTROPY_2,
    dataset: MemoryData | None = None,
    batch_size: int = 4,
    *,
    staging: HostStaging | None = None,
    inputs: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
    with_data: bool = True,
    configured: bool = True,
    **options: Any,
) -> Case:
    """A build of a network with one image input, on 12 images in batches of 4, unless said otherwise."""
    chosen = MemoryData({"x": rows(12, 3, 4)}) if dataset is None else dataset
    data = CalibrationData(chosen, batch_size, staging or HostStaging())
    made = make_calibrator(trt.module, algorithm, data=data if with_data else None, **options)
    return Case(trt, made, inputs or IMAGE, configured)
