"""The data set that every source becomes: decoded ahead in threads, counted, restartable."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.datasets.content import Content, ImageContent, UnreadableSampleError
from quantlab.datasets.inputs import InputSpec, format_shape
from quantlab.datasets.lookahead import map_ahead
from quantlab.datasets.manifest import Manifest, ManifestEntry
from quantlab.datasets.protocol import InputStatistics, Sample
from quantlab.datasets.resolution import ResolvedPreprocess
from quantlab.datasets.source import Labelling, Source
from quantlab.datasets.statistics import ChannelStatistics
from quantlab.datasets.tensors import fit_tensors
from quantlab.degradation import Degradation, DegradationCode
from quantlab.errors import ConfigError, DataError, QuantlabError


@dataclass(frozen=True, slots=True)
class _Finding:
    """What loading one sample showed; kept for the life of the data set."""

    sha256: str
    label: int | None
    losses: tuple[str, ...] = ()
    reason: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples of a source are used.

    Attributes:
        indices: Into the source's listing, ascending.
        limit: What was asked for, or None.
        seed: Of the choice.
    """

    indices: tuple[int, ...]
    limit: int | None = None
    seed: int = 0


def unreadable_message(unreadable: int, total: int) -> str:
    """What the degradation `unreadable-samples` says."""
    return f"{unreadable} of {total} samples could not be read and were left out"


class SourceDataset:
    """A `Dataset` over any `Source`; made by `open_dataset` or `wrap_items`.

    Each pass decodes and preprocesses again, in ``threads`` threads ahead of the consumer; only hashes, labels and
    findings are kept between passes, so memory does not grow with the size of the images.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[InputSpec],
        preprocess: ResolvedPreprocess,
        selection: Selection,
        *,
        threads: int = 2,
        num_classes: int | None = None,
    ) -> None:
        if threads < 1:
            raise ConfigError("the number of threads is wrong", got=threads, expected="1 or more")
        self._source = source
        self._listing = source.listing
        self._inputs = tuple(inputs)
        self._preprocess = preprocess
        self._selection = selection
        self._threads = threads
        self._num_classes = num_classes
        self._findings: dict[int, _Finding] = {}
        self._positions: dict[str, int] | None = None
        for index in selection.indices if self._listing.labels else ():
            self._checked_label(index, None)

    @property
    def name(self) -> str:
        """What the user called it."""
        return self._listing.name

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes by label, where the source has them."""
        return self._listing.class_names

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Ids of the samples that are used, readable or not."""
        return tuple(self._listing.ids[index] for index in self._selection.indices)

    @property
    def preprocess(self) -> ResolvedPreprocess:
        """The preprocessing that is applied, with all of it filled in; none for ready tensors."""
        return self._preprocess

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The model inputs that the samples are made for."""
        return self._inputs

    @property
    def listed_ids(self) -> tuple[str, ...]:
        """Ids of all that the source lists, a subset or not; known without a pass."""
        return self._listing.ids

    def __len__(self) -> int:
        return len(self._selection.indices)

    def __iter__(self) -> Generator[Sample, None, None]:
        indices = [index for index in self._selection.indices if not self._known_unreadable(index)]
        with closing(map_ahead(self._load_sample, indices, self._threads)) as results:
            for index, (finding, arrays) in zip(indices, results, strict=True):
                self._findings[index] = finding
                if arrays is not None:
                    yield Sample(self._listing.ids[index], arrays, finding.label, finding.sha256)
        self._require_readable()

    def load(self, position: int) -> Sample:
        """Read, decode and preprocess one sample anew, in the calling thread; safe to call from several.

        Args:
            position: In ``sample_ids``.

        Raises:
            DataError: If it cannot be read, or does not fit the inputs.
        """
        index = self._selection.indices[position]
        known, arrays = self._findings.get(index), None
        if known is None or known.reason is None:
            known, arrays = self._load_sample(index)
            self._findings[index] = known
        if arrays is None:
            raise DataError(
                f"sample {self._listing.ids[index]!r} of {self.name} cannot be read", got=known.reason,
                hint="take it out of the data, or repair it",
            )  # fmt: skip
        return Sample(self._listing.ids[index], arrays, known.label, known.sha256)

    @property
    def manifest(self) -> Manifest:
        """Content hash and label of every readable sample; reads what no pass has read yet."""
        indices = [index for index in self._selection.indices if index not in self._findings]
        with closing(map_ahead(self._load_finding, indices, self._threads)) as results:
            self._findings.update(zip(indices, results, strict=True))
        self._require_readable()
        readable = ((index, self._findings[index]) for index in self._selection.indices)
        return Manifest(
            tuple(
                ManifestEntry(self._listing.ids[index], finding.sha256, finding.label)
                for index, finding in readable
                if finding.reason is None
            )
        )

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """What went wrong or was assumed, up to now; complete after a pass."""
        found = [*self._listing.degradations]
        if self._preprocess.degradation is not None:
            found.append(self._preprocess.degradation)
        found += [
            *self._assumed_labels(),
            *self._unreadable(),
            *self._lossy(),
            *self._duplicates(),
            *self._unlabelled(),
        ]
        return tuple(found)

    def image_size(self, sample: str) -> tuple[int, int] | None:
        """Height and width of a sample's upright image; None for tensors, and before it was read."""
        if self._positions is None:
            self._positions = {self._listing.ids[index]: index for index in self._selection.indices}
        finding = self._findings.get(self._positions.get(sample, -1))
        return None if finding is None else finding.size

    def statistics(self, n: int = 64) -> tuple[InputStatistics, ...]:
        """Statistics of the first ``n`` readable samples of each input, one value a channel.

        Raises:
            ConfigError: If ``n`` is not positive.
            DataError: As iteration does.
        """
        if n <= 0:
            raise ConfigError("the number of samples for statistics is wrong", got=n, expected="1 or more")
        running = {spec.name: ChannelStatistics(spec) for spec in self._inputs}
        with closing(self.__iter__()) as samples:
            for sample in islice(samples, n):
                for name, statistics in running.items():
                    statistics.add(sample.inputs[name])
        return tuple(statistics.result() for statistics in running.values())

    def part(self, ids: Collection[str]) -> SourceDataset:
        """The samples of these ids alone, in the same order; what a pass over it finds is known to the whole as well.

        Raises:
            DataError: If no sample has one of the ids.
        """
        wanted = frozenset(ids)
        indices = tuple(index for index in self._selection.indices if self._listing.ids[index] in wanted)
        if not indices:
            raise DataError(f"no sample of {self.name} has one of these ids", got=", ".join(sorted(wanted)[:3]))
        selection = Selection(indices, self._selection.limit, self._selection.seed)
        result = SourceDataset(
            self._source,
            self._inputs,
            self._preprocess,
            selection,
            threads=self._threads,
            num_classes=self._num_classes,
        )
        result._findings = self._findings
        return result

    def describe(self) -> Mapping[str, Any]:
        """Plain values for provenance."""
        applied = self._preprocess.preprocess
        return {
            "kind": self._listing.kind,
            "name": self.name,
            "samples": len(self),
            "listed": len(self._listing.ids),
            "ignored_files": self._listing.ignored,
            "limit": self._selection.limit,
            "seed": self._selection.seed,
            "labelling": self._listing.labelling.value,
            "preprocess": applied.to_plain() if applied else None,
            "preprocess_sha256": applied.sha256 if applied else None,
            "preprocess_origin": self._preprocess.origin,
        }

    def _known_unreadable(self, index: int) -> bool:
        finding = self._findings.get(index)
        return finding is not None and finding.reason is not None

    def _load_sample(self, index: int) -> tuple[_Finding, Mapping[str, NDArray[np.generic]] | None]:
        known = self._findings.get(index)
        try:
            content = self._source.load(index)
        except UnreadableSampleError as error:
            if known is not None:
                raise DataError(
                    f"sample {self._listing.ids[index]!r} could be read before and cannot any more",
                    got=error.what,
                    hint="keep the data unchanged while quantlab runs",
                ) from error
            return _Finding("", None, reason=error.what), None
        return known or self._finding(index, content), self._prepare(index, content)

    def _load_finding(self, index: int) -> _Finding:
        try:
            return self._finding(index, self._source.load(index))
        except UnreadableSampleError as error:
            return _Finding("", None, reason=error.what)

    def _finding(self, index: int, content: Content) -> _Finding:
        label = self._checked_label(index, content.label)
        if not isinstance(content, ImageContent):
            return _Finding(content.sha256(), label)
        height, width = content.pixels.shape[:2]
        return _Finding(content.sha256(), label, content.losses, size=(height, width))

    def _checked_label(self, index: int, loaded: int | None) -> int | None:
        labels = self._listing.labels
        label = labels[index] if labels is not None else loaded
        if label is not None and (label < 0 or (self._num_classes is not None and label >= self._num_classes)):
            top = "" if self._num_classes is None else f" to {self._num_classes - 1}, as the model has classes"
            raise DataError(
                f"sample {self._listing.ids[index]!r} of {self.name} has a label out of range",
                got=label,
                expected=f"0{top or ' or more'}",
                hint="state the labels with --labels; they count from 0",
            )
        return label

    def _prepare(self, index: int, content: Content) -> Mapping[str, NDArray[np.generic]]:
        sample = self._listing.ids[index]
        if not isinstance(content, ImageContent):
            return fit_tensors(content.arrays, self._inputs, sample)
        (spec,) = self._inputs
        if self._preprocess.preprocess is None:
            raise DataError(
                f"sample {sample!r} is an image, but no preprocessing applies", got=format_shape(content.pixels.shape),
                expected=str(spec), hint="state one with --preprocess",
            )  # fmt: skip
        try:
            array = self._preprocess.preprocess.apply(content.pixels, spec.numpy_dtype)
        except QuantlabError as error:
            raise DataError(
                f"sample {sample!r}: {error.what}", got=error.got, expected=error.expected, hint=error.hint
            ) from error
        if not spec.accepts(array.shape):
            raise DataError(
                f"sample {sample!r} does not fit input {spec.name!r} and the preprocessing does not resize it",
                got=f"{format_shape(array.shape)} from an image of {format_shape(content.pixels.shape)}",
                expected=str(spec),
                hint="add resize = 'stretch' or 'shortest' to the preprocessing",
            )
        return {spec.name: array}

    def _require_readable(self) -> None:
        reasons = Counter(f.reason for i in self._selection.indices if (f := self._findings.get(i)) and f.reason)
        if sum(reasons.values()) == len(self):
            most = ", ".join(f"{reason} (x{count})" for reason, count in reasons.most_common(3))
            raise DataError(f"none of the {len(self)} samples of {self.name} could be read", got=most)

    def _known(self) -> Iterator[tuple[str, _Finding]]:
        for index in self._selection.indices:
            finding = self._findings.get(index)
            if finding is not None:
                yield self._listing.ids[index], finding

    def _assumed_labels(self) -> Iterator[Degradation]:
        names, classes = self._listing.class_names, self._num_classes
        if self._listing.labelling is Labelling.SORTED_NAMES and names and classes and len(names) < classes:
            message = (
                f"class numbers come from {len(names)} sorted names while the model has {classes} classes, so they may "
                "be wrong; state them with --labels"
            )
            yield Degradation.of(DegradationCode.ASSUMED_LABELS, message, names)

    def _unreadable(self) -> Iterator[Degradation]:
        bad = [f"{name}: {finding.reason}" for name, finding in self._known() if finding.reason is not None]
        if bad:
            yield Degradation.of(DegradationCode.UNREADABLE_SAMPLES, unreadable_message(len(bad), len(self)), bad)

    def _lossy(self) -> Iterator[Degradation]:
        by_loss: defaultdict[str, list[str]] = defaultdict(list)
        for name, finding in self._known():
            for loss in finding.losses:
                by_loss[loss].append(name)
        for loss in sorted(by_loss):
            yield Degradation.of(
                DegradationCode.LOSSY_DECODE, f"images were decoded with a loss: {loss}", by_loss[loss]
            )

    def _duplicates(self) -> Iterator[Degradation]:
        seen: set[str] = set()
        again: list[str] = []
        for name, finding in self._known():
            if finding.reason is None:
                again += [name] if finding.sha256 in seen else []
                seen.add(finding.sha256)
        if again:
            message = "samples have the same content as an earlier one and count more than once"
            yield Degradation.of(DegradationCode.DUPLICATE_SAMPLES, message, again)

    def _unlabelled(self) -> Iterator[Degradation]:
        labels = self._listing.labels
        if labels is not None:
            pairs = [(self._listing.ids[index], labels[index]) for index in self._selection.indices]
        else:
            pairs = [(name, finding.label) for name, finding in self._known() if finding.reason is None]
        missing = [name for name, label in pairs if label is None]
        if missing and len(missing) < len(pairs):
            message = "samples have no label and are left out of accuracy"
            yield Degradation.of(DegradationCode.UNLABELLED_SAMPLES, message, missing)
