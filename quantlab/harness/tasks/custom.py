"""A metric of the user's own: ``--metric package.module:function``.

The function is called with the outputs of one variant on one batch, and the batch::

    def function(outputs: Mapping[str, np.ndarray], batch: Batch) -> np.ndarray | dict[str, np.ndarray]

``outputs`` holds arrays by output name, samples first, which cannot be written to; `Batch` has ``ids``, ``labels``,
``inputs`` and ``sha256s`` of the same samples. It returns one number for each sample, or several by name; the figure
is their mean. A masked array leaves out the samples that it masks. ``function.higher_is_better`` must be True or
False, or such by name; ``function.unit`` may be a text, or texts by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets import Batch
from quantlab.datasets.user_code import FUNCTION, contained, import_function
from quantlab.errors import ConfigError, DataError, QuantlabError
from quantlab.harness.tasks.columns import only_losses
from quantlab.harness.tasks.protocol import Additive, AnyMeter, Arrays, Estimator, Figure, Floats
from quantlab.harness.tasks.registry import Beginning, TaskRequest, refuse_options

Metric = Callable[[Arrays, Batch], object]


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What the function says of the samples of a batch.

    Attributes:
        values: (n,)
        left_out: (n,): samples that it masked.
    """

    values: Floats
    left_out: NDArray[np.bool_]


class CustomTask:
    """Means of what a user's function says of each sample.

    Args:
        spec: Name of the function, for messages.
        function: See the module.
        figures: One for each name that it returns.
    """

    name = "custom"
    least = 10

    def __init__(self, spec: str, function: Metric, figures: Sequence[Figure]) -> None:
        self.spec, self.function, self.figures = spec, function, tuple(figures)

    def meter(self) -> CustomMeter:
        """A new meter, for one variant."""
        return CustomMeter(self)


class CustomMeter:
    """The values of every sample, of one variant."""

    def __init__(self, task: CustomTask) -> None:
        self._task = task
        self._values: dict[str, list[Floats]] = {figure.name: [] for figure in task.figures}

    @property
    def drop_unit(self) -> str:
        """What `drops` counts."""
        figure = self._task.figures[0]
        return f"{figure.name} worse" + (f", {figure.unit}" if figure.unit else "")

    def add(self, batch: Batch, outputs: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Call the function on a batch.

        A value that is not finite, and any value of a sample whose outputs are not all finite, is the worst possible:
        minus or plus infinity. Samples that the function masks are left out.

        Returns:
            A column for each figure; NaN for samples that are left out.

        Raises:
            DataError: If the function raises, or returns something else than it did first.
        """
        found = call_metric(self._task.spec, self._task.function, batch, outputs)
        if set(found) != set(self._values):
            raise DataError(
                f"the metric {self._task.spec!r} does not return the same figures for every batch",
                got=", ".join(found), expected=", ".join(self._values),
            )  # fmt: skip
        broken = np.zeros(len(batch.ids), bool)
        for value in outputs.values():
            if value.dtype.kind not in "biu" and value.shape[:1] == broken.shape:
                broken |= ~np.isfinite(value.astype(np.float64)).reshape(len(broken), -1).all(axis=1)
        columns: dict[str, NDArray[np.generic]] = {}
        for figure in self._task.figures:
            given = found[figure.name]
            worst = -math.inf if figure.higher_is_better else math.inf
            values = np.where(broken | ~np.isfinite(given.values), worst, given.values)
            values = np.where(given.left_out, np.nan, values)
            self._values[figure.name].append(values)
            columns[figure.name] = values
        return columns

    def _of(self, figure: str) -> Floats:
        return np.concatenate([np.zeros(0), *self._values[figure]])

    def estimators(self) -> Mapping[str, Estimator]:
        """By the name of the figure.

        Raises:
            DataError: If the function left out every sample of one.
        """
        for figure in self._task.figures:
            if not self.counted(figure.name).any():
                raise DataError(
                    f"the metric {self._task.spec!r} left out every sample of {figure.name!r}",
                    got="masked values alone",
                    expected="at least one that is not masked",
                )
        return {
            figure.name: mean_of(self._of(figure.name), -math.inf if figure.higher_is_better else math.inf)
            for figure in self._task.figures
        }

    def correct(self, figure: str) -> Floats:
        """No figure is a proportion of samples, as far as is known."""
        raise KeyError(figure)

    def counted(self, figure: str) -> NDArray[np.bool_]:
        """The samples that the function did not leave out; (n,)."""
        known: NDArray[np.bool_] = ~np.isnan(self._of(figure))
        return known

    def drops(self, reference: AnyMeter) -> Floats:
        """How much worse the first figure is than with the reference; (n,), NaN where it is not, or is left out."""
        if not isinstance(reference, CustomMeter):
            raise TypeError(type(reference).__name__)
        figure = self._task.figures[0]
        mine, other = self._of(figure.name), reference._of(figure.name)
        with np.errstate(invalid="ignore"):
            return only_losses(other - mine if figure.higher_is_better else mine - other)

    def says(self, index: int) -> str:
        """The values by name."""
        return ", ".join(f"{name} {self._of(name)[index]:.5g}" for name in self._values)

    def truth(self, index: int) -> str | None:
        """Not known: the function keeps it to itself."""
        return None


def mean_of(values: Floats, worst: float) -> Additive:
    """Mean of (n,) values; NaN ones do not count, and one infinite value makes it the worst possible."""
    known, broken = ~np.isnan(values), np.isinf(values)
    terms = np.column_stack([known, broken, np.where(known & ~broken, values, 0.0)]).astype(np.float64)

    def mean(sums: Floats) -> Floats:
        plain = sums[:, 2] / np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
        result: Floats = np.where(sums[:, 1] > 0, worst, plain)
        return result

    return Additive(terms, mean)


def call_metric(spec: str, function: Metric, batch: Batch, outputs: Arrays) -> dict[str, Told]:
    """What the function says of a batch, checked: one number a sample by figure.

    A function that returns an array gives one figure of the function's own name.

    Raises:
        DataError: If it raises or returns something else.
    """
    try:
        with contained():
            result = function(_sealed(outputs), replace(batch, inputs=_sealed(batch.inputs)))
    except QuantlabError:
        raise
    except Exception as cause:  # the user's function may raise anything
        raise DataError(
            f"the metric {spec!r} failed on the batch from sample {batch.ids[0]!r}",
            got=f"{type(cause).__name__}: {cause}",
            expected="function(outputs, batch) with one number a sample",
            hint="see where it failed with --debug",
        ) from cause
    named = result if isinstance(result, Mapping) else {spec.split(":")[1]: result}
    found = {}
    for name, value in named.items():
        told = _told(value)
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"the metric {spec!r} returned a figure of a wrong name", got=repr(name)[:80], expected="a text"
            )
        if told is None or told.values.shape != (len(batch.ids),):
            raise DataError(
                f"the metric {spec!r} returned something wrong for {name!r}",
                got=_shown(value),
                expected=f"{len(batch.ids)} numbers, one for each sample of the batch",
            )
        found[name] = told
    if not found:
        raise DataError(f"the metric {spec!r} returned no figure", got="an empty dict", expected="at least one")
    return found


def _told(value: object) -> Told | None:
    """Numbers and their mask; None for what is no array of numbers."""
    try:
        array: NDArray[np.generic] = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return None
        mask = np.ma.getmaskarray(value) if isinstance(value, np.ma.MaskedArray) else np.zeros(array.shape, bool)
        return Told(array.astype(np.float64), mask)
    except Exception:  # an array type of the user's may raise anything, as torch's tensors that need gradients do
        return None


def _sealed(arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    """The same arrays, which cannot be written to: other variants are measured against and fed with them."""
    sealed = {name: value.view() for name, value in arrays.items()}
    for value in sealed.values():
        value.flags.writeable = False
    return sealed


def _shown(value: object) -> str:
    """A value for a message: an address would say nothing."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    if value is None or isinstance(value, int | float | complex | str | list | tuple):
        return repr(value)[:80]
    return f"a {type(value).__name__}"


def find_metric(spec: str) -> Metric:
    """Import a metric.

    Raises:
        ConfigError: If there is no such function.
    """
    if not FUNCTION.match(spec):
        raise ConfigError("the metric has a wrong form", got=repr(spec), expected="package.module:function")
    function: Metric = import_function(spec, "metric", ConfigError, "an importable package.module:function")
    return function


def make(request: TaskRequest, beginning: Beginning) -> CustomTask:
    """Import the function, and call it once on the first batch to learn the names of its figures.

    Raises:
        ConfigError: If there is no such function, or it does not say which direction is better.
        DataError: If it fails, or returns something else than numbers for samples.
    """
    refuse_options(request, "custom")
    spec = request.metric or ""
    function = find_metric(spec)
    names = list(call_metric(spec, function, beginning.batch, beginning.outputs))
    higher = {name: _stated(function, spec, "higher_is_better", name, bool) for name in names}
    units = {name: _stated(function, spec, "unit", name, str, "") for name in names}
    return CustomTask(spec, function, [Figure(name, units[name], higher_is_better=higher[name]) for name in names])


def _stated(function: object, spec: str, attribute: str, name: str, kind: type, default: object = None) -> Any:
    """What the function's attribute says of a figure."""
    given = getattr(function, attribute, default)
    value = given.get(name, default) if isinstance(given, Mapping) else given
    value = bool(value) if isinstance(value, np.bool_) else value
    if not isinstance(value, kind):
        raise ConfigError(
            f"the metric {spec!r} does not state {attribute} of {name!r}",
            got=repr(value),
            expected="True or False" if kind is bool else "a text",
            hint=f"below the function: {spec.split(':')[1]}.{attribute} = {'True' if kind is bool else repr('%')}",
        )
    return value
