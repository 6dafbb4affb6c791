"""The task ``regress``: errors of predicted values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.datasets.annotations_values import Values, read_values, true_column
from quantlab.degradation import Degradation
from quantlab.errors import ConfigError, MeasurementError
from quantlab.harness.tasks.columns import only_losses
from quantlab.harness.tasks.images import match_samples, missing_truths
from quantlab.harness.tasks.options import required_truths, settings_from
from quantlab.harness.tasks.protocol import Additive, AnyMeter, Arrays, Estimator, Figure, Floats
from quantlab.harness.tasks.registry import Beginning, TaskRequest


@dataclass(frozen=True, slots=True)
class RegressSettings:
    """How outputs are read.

    Attributes:
        output: Name of the output; None for the only one that fits.
        unit: Of the values, for reports.
    """

    output: str | None = None
    unit: str = ""


class RegressTask:
    """Values of samples.

    Args:
        values: Truths by sample.
        settings: How outputs are read.
    """

    name = "regress"
    least = 10

    def __init__(self, values: Values, settings: RegressSettings) -> None:
        self.values, self.settings = values, settings

    @property
    def figures(self) -> Sequence[Figure]:
        """Mean absolute error, root of the mean square error, coefficient of determination."""
        unit = self.settings.unit
        return (
            Figure("mae", unit, higher_is_better=False),
            Figure("rmse", unit, higher_is_better=False),
            Figure("r2", "", higher_is_better=True),
        )

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """Samples that have no truth."""
        return missing_truths(self.values.truths)

    def meter(self) -> RegressMeter:
        """A new meter, for one variant."""
        return RegressMeter(self)


class RegressMeter:
    """Predicted values of every sample, of one variant."""

    def __init__(self, task: RegressTask) -> None:
        self._task = task
        self._true: list[Floats] = []
        self._said: list[Floats] = []

    @property
    def drop_unit(self) -> str:
        """What `drops` counts."""
        unit = self._task.settings.unit
        return "increase of the mean absolute error" + (f", {unit}" if unit else "")

    def add(self, batch: Batch, outputs: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Compare a batch with its values.

        Returns:
            For each value ``<column>.true`` and ``<column>``; NaN for samples without a truth.

        Raises:
            MeasurementError: If no output has one value for each column of the truths.
        """
        columns = self._task.values.columns
        said = self._predicted(outputs, len(columns), len(batch.ids))
        nothing = np.full(len(columns), np.nan)
        found = [self._task.values.truths.find(sample) for sample in batch.ids]
        true = np.array([nothing if one is None else one for one in found]).reshape(len(found), len(columns))
        self._true.append(true)
        self._said.append(said)
        return {true_column(name): true[:, index] for index, name in enumerate(columns)} | {
            name: said[:, index] for index, name in enumerate(columns)
        }

    def _predicted(self, outputs: Arrays, width: int, n: int) -> Floats:
        name = self._task.settings.output
        if name is not None and name not in outputs:
            raise ConfigError(f"the model has no output {name!r}", expected="one of " + ", ".join(outputs))
        fitting = [
            value
            for key, value in outputs.items()
            if name in (None, key) and value.dtype.kind != "b" and value.shape[:1] == (n,) and value.size == n * width
        ]
        if len(fitting) != 1:
            raise MeasurementError(
                f"the task regress needs one output of {width} value{'s' * (width != 1)} a sample, as the truths have",
                got=", ".join(f"{key} {value.shape}" for key, value in outputs.items()),
                expected=f"(N, {width})",
                hint="name it: --task-option output=NAME" if fitting else None,
            )
        said: Floats = fitting[0].reshape(n, width).astype(np.float64)
        return said

    def estimators(self) -> Mapping[str, Estimator]:
        """By the name of the figure."""
        return error_figures(self._joined(self._true), self._joined(self._said))

    def _joined(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate([np.zeros((0, len(self._task.values.columns))), *parts])

    def correct(self, figure: str) -> Floats:
        """No figure is a proportion of samples."""
        raise KeyError(figure)

    def counted(self, figure: str) -> NDArray[np.bool_]:
        """The samples that have a truth; (n,)."""
        return np.logical_not(np.isnan(self._joined(self._true)).any(axis=1))

    def drops(self, reference: AnyMeter) -> Floats:
        """How much larger each sample's mean absolute error is than the reference's; (n,), NaN if it is not."""
        if not isinstance(reference, RegressMeter):
            raise TypeError(type(reference).__name__)
        mine, other = self._errors(), reference._errors()
        with np.errstate(invalid="ignore"):
            return only_losses(mine - other)

    def _errors(self) -> Floats:
        said, true = self._joined(self._said), self._joined(self._true)
        with np.errstate(invalid="ignore"):
            error = np.abs(said - true).mean(axis=1)
        result: Floats = np.where(np.isfinite(said).all(axis=1) | np.isnan(true).any(axis=1), error, np.inf)
        return result

    def says(self, index: int) -> str:
        """The predicted values."""
        return _numbers(self._joined(self._said)[index])

    def truth(self, index: int) -> str | None:
        """The true values."""
        true = self._joined(self._true)[index]
        return None if np.isnan(true).any() else _numbers(true)


def _numbers(values: Floats) -> str:
    return " ".join(f"{value:.5g}" for value in values)


def error_figures(true: Floats, said: Floats) -> dict[str, Estimator]:
    """MAE, RMSE and R2, all (n, values); rows with a NaN truth do not count.

    MAE and RMSE are over all values of all samples. R2 is ``1 - residual / total sum of squares`` of each value, then
    their mean, as scikit-learn's ``r2_score``; it is undefined where a value's truths are all equal. With a prediction
    that is not finite among the samples that count, errors are infinite and R2 is minus infinity.
    """
    width = true.shape[1]
    known: NDArray[np.bool_] = np.logical_not(np.isnan(true).any(axis=1))
    good = known & np.isfinite(said).all(axis=1)
    broken = (known & ~good).astype(np.float64)
    y = np.where(known[:, None], true, 0.0)
    shift = y.sum(axis=0) / max(int(known.sum()), 1)  # sums of squares about the mean lose no digits
    y = np.where(known[:, None], true - shift, 0.0)
    error = np.where(good[:, None], said - true, 0.0)
    terms = np.column_stack([known.astype(np.float64), broken, error**2, y, y**2, np.abs(error).sum(axis=1)])

    def mae(sums: Floats) -> Floats:
        return _worst(sums, sums[:, -1] / _positive(sums[:, 0] * width), math.inf)

    def rmse(sums: Floats) -> Floats:
        squares = sums[:, 2 : 2 + width].sum(axis=1)
        return _worst(sums, np.sqrt(squares / _positive(sums[:, 0] * width)), math.inf)

    def r2(sums: Floats) -> Floats:
        residual, total, square = (sums[:, 2 + k * width : 2 + (k + 1) * width] for k in range(3))
        count = _positive(sums[:, :1])
        spread = square - total**2 / count
        # Rounding leaves a little of what is nothing.
        defined = spread > 1e-12 * square
        shares = np.where(defined, 1.0 - residual / np.where(defined, spread, 1.0), np.nan)
        return _worst(sums, shares.mean(axis=1), -math.inf)

    return {"mae": Additive(terms, mae), "rmse": Additive(terms, rmse), "r2": Additive(terms, r2)}


def _positive(values: Floats) -> Floats:
    result: Floats = np.where(values > 0, values, np.nan)
    return result


def _worst(sums: Floats, values: Floats, worst: float) -> Floats:
    result: Floats = np.where(sums[:, 1] > 0, worst, values)
    return result


def make(request: TaskRequest, beginning: Beginning) -> RegressTask:
    """Make the task from a CSV file of values.

    Raises:
        ConfigError: If the file is not named, or a setting is wrong.
        DataError: If it is wrong or belongs to other data.
    """
    settings = settings_from(RegressSettings, request.options, "regress")
    values = read_values(required_truths(request.truths, "regress", "a CSV file with rows file,value"))
    match_samples(values.truths, beginning)
    return RegressTask(values, settings)
