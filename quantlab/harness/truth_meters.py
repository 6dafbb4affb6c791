"""Distances of one execution of a truth table from the references, output by output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from quantlab.errors import MeasurementError
from quantlab.harness.gap import Gap, GapMeter
from quantlab.harness.truth_record import OutputTruth

Outputs = Mapping[str, NDArray[np.generic]]

_BY_SAMPLE = ("graph", "exact")


class RowMeters:
    """A meter for each output and reference, and what each sample adds to those that a verdict rests on."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self.meters: dict[str, dict[str, GapMeter]] = {name: {} for name in outputs}
        self._terms: dict[tuple[str, str], list[tuple[float, ...]]] = {}
        self.failed = ""
        self.batch_failed = ""

    def add(self, kind: str, expected: Outputs, got: Outputs) -> None:
        """Add one sample or batch.

        Raises:
            MeasurementError: If an output is missing or has another shape.
        """
        for name, meters in self.meters.items():
            if name not in got:
                raise MeasurementError(f"the output {name!r} is missing", got=", ".join(got) or "none")
            if got[name].shape != expected[name].shape:
                raise MeasurementError(
                    f"output {name!r} has another shape", got=got[name].shape, expected=expected[name].shape
                )
            added = meters.setdefault(kind, GapMeter()).add(expected[name], got[name])
            if kind in _BY_SAMPLE:
                self._terms.setdefault((name, kind), []).append(added)

    def terms(self, output: str, kind: str) -> NDArray[np.float64] | None:
        """(n, 5), a line a sample: see `quantlab.harness.gap.TERMS`; None if nothing was added."""
        found = self._terms.get((output, kind))
        return np.array(found) if found else None

    def gap(self, output: str, kind: str) -> Gap | None:
        """The distance over all samples."""
        meter = self.meters[output].get(kind)
        return meter.result() if meter is not None else None

    def outputs(self) -> tuple[OutputTruth, ...]:
        """All distances, by output."""
        return tuple(
            OutputTruth(
                name,
                graph=self.gap(name, "graph"),
                exact=self.gap(name, "exact"),
                fp32=self.gap(name, "fp32"),
                batch=self.gap(name, "batch"),
                repeat=self.gap(name, "repeat"),
            )
            for name in self.meters
        )
