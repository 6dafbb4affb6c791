"""TensorRT's own INT8 calibration, up to TensorRT 10: the ``IInt8*`` calibrators, fed by a data set or a table.

TensorRT calls a calibrator from inside the build: first ``read_calibration_cache``; if it takes what it gets, nothing
else. Otherwise ``get_batch_size``, then ``get_batch`` until there is no more, then ``write_calibration_cache``. Its
Python binding forgives everything: an exception in ``get_batch`` counts as the end of the data, one in
``write_calibration_cache`` is printed, a list of addresses that is too short is read beyond its end, and a cache that
is rejected leads to ``get_batch`` without a word. The engine is built all the same, on ranges of part of the data or of
none. So nothing is left to the binding here: callbacks check what they are given and what they give, remember the
first error, and `Calibrator.complete` raises it after the build, and whatever else shows that the calibration is not
what was asked for.

    with make_calibrator(module, algorithm, data=CalibrationData(dataset, 32, staging)) as calibrator:
        calibrator.configure(config, builder, network)
        engine = builder.build_serialized_network(network, config)
        calibrator.raise_pending()  # the reason, where there is no engine
        ...
        outcome = calibrator.complete()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantlab.calibrators.cache_provenance import CacheProvenance, write_cache_text
from quantlab.calibrators.table import CalibrationTable
from quantlab.calibrators.tensorrt_cache import Algorithm, CalibrationCache, version_text
from quantlab.calibrators.tensorrt_feed import CalibrationData, CalibrationFeed, DeviceStaging, Shapes
from quantlab.calibrators.tensorrt_native import (
    DEFAULT_LEGACY,
    LegacyOptions,
    configure_calibration,
    make_native,
    network_tensors,
    require_calibrators,
)
from quantlab.calibrators.tensorrt_offer import (
    CacheOffer,
    CalibrationIdentity,
    fits_algorithm,
    offer_file,
    offer_table,
)
from quantlab.calibrators.tensorrt_outcome import CalibrationOutcome, RangeOrigin
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.errors import CalibrationError, ConfigError
from quantlab.files import check_folder, is_file, is_folder, sha256_bytes
from quantlab.progress import Narrator, Silent


class Calibrator:
    """One calibration of one build; made by `make_calibrator`.

    Attributes:
        native: Instance of the module's calibrator class, for ``config.int8_calibrator``. It must live as long as the
            build, and does if the calibrator does.
    """

    def __init__(
        self,
        module: Any,
        identity: CalibrationIdentity,
        feed: CalibrationFeed | None,
        offer: CacheOffer | None,
        path: Path | None,
        legacy: LegacyOptions,
        narrator: Narrator,
    ) -> None:
        self._module = module
        self._identity = identity
        self._feed = feed
        self._offer = offer
        self._path = path
        self._narrator = narrator
        self._error: BaseException | None = None
        self._asked_cache = self._asked_batch = self._begun = False
        self._written: list[tuple[bytes, CalibrationCache]] = []
        self.native = make_native(module, identity.algorithm, legacy, self)

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shapes(self) -> Shapes:
        """Shape of a batch by input name, batch axis first; empty without data."""
        return self._feed.found.shapes if self._feed else {}

    @property
    def failed(self) -> bool:
        """Whether a callback failed, so that going on with the build is of no use."""
        return self._error is not None

    def configure(self, config: Any, builder: Any, network: Any) -> None:
        """Ask for INT8, with this calibrator, and with a calibration profile if an input has dynamic dimensions.

        Args:
            config: The module's ``IBuilderConfig``; flags that it has stay.
            builder: Its ``Builder``, which makes the profile.
            network: Its ``INetworkDefinition``, complete.

        Raises:
            DataError: If the data do not fit an input of the network in name, shape or dtype.
            ModelError: If an input holds a shape, for which TensorRT cannot be given data.
            EngineBuildError: If TensorRT refuses the profile.
        """
        found = self._feed.found if self._feed else None
        configure_calibration(self._module, config, builder, network, self.native, found)

    # What TensorRT calls. Nothing may leave these but a value: the binding would print an exception and go on.

    def read_cache(self) -> bytes | None:
        """``read_calibration_cache``."""
        self._asked_cache = True
        self._begun = False
        return self._offer.data if self._offer is not None else None

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """``get_batch``: addresses in the order of ``names``; None at the end, and from the first error on."""
        try:
            self._asked_batch = True
            if self._error is not None:
                return None
            if not self._begun:
                self._begin()
            return self._feed.stage(names) if self._feed else None
        except BaseException as error:  # a KeyboardInterrupt, too, must wait for the end of the build
            self._remember(error)
            return None

    def write_cache(self, cache: memoryview) -> None:
        """``write_calibration_cache``: copies the cache, whose memory is TensorRT's."""
        try:
            data = bytes(cache)
            if self._error is not None:
                return
            parsed = CalibrationCache.from_bytes(data, "the calibration cache that TensorRT wrote")
            if not fits_algorithm(parsed.algorithm, self._identity.algorithm):
                raise CalibrationError("TensorRT wrote a calibration cache of another algorithm",
                                       got=parsed.algorithm, expected=self._identity.algorithm)  # fmt: skip
            self._written.append((data, parsed))
        except BaseException as error:
            self._remember(error)

    def _begin(self) -> None:
        self._begun = True
        if self._feed is not None:
            self._feed.restart()
        elif self._offer is not None:
            raise CalibrationError(
                f"TensorRT did not take the {self._offer.origin}, and there are no data to calibrate on",
                got=f"header TRT-{self._offer.cache.version}-{self._offer.cache.algorithm}",
                expected="a cache that this version takes; its log says more",
                hint="calibrate on data, or build the Q/DQ model",
            )

    def _remember(self, error: BaseException) -> None:
        # An interrupt wins over what it may have caused, and over what was wrong before: nobody waits for that.
        if self._error is None or not isinstance(error, Exception):
            self._error = error

    # What the builder calls after the build.

    def raise_pending(self) -> None:
        """Raise what went wrong in a callback, as it was raised there, be it a `KeyboardInterrupt`.

        To be called after every build, also of one that gave no engine or raised: this is the reason then.
        """
        if self._error is not None:
            raise self._error

    def complete(self) -> CalibrationOutcome:
        """Check that the calibration was complete, and write the cache; to be called once there is an engine.

        The cache is written if TensorRT calibrated on data and a path for it was given. Nothing is written if the
        build failed, because then this is not called.

        Raises:
            BaseException: As `raise_pending`.
            CalibrationError: If TensorRT asked for nothing, stopped before the last batch, or wrote no cache.
            OutputError: If the cache cannot be written.
        """
        self.raise_pending()
        origin, data, cache = self._ranges()
        if origin is RangeOrigin.DATA and self._path is not None:
            provenance = self._provenance(self._path.name, data, cache)
            write_cache_text(self._path, data.decode("utf-8"), provenance)
        degradations = tuple(self._degradations(origin))
        for degradation in degradations:
            self._narrator.warn(degradation)
        feed = self._feed
        used = feed if origin is RangeOrigin.DATA else None
        return CalibrationOutcome(
            self._identity.algorithm,
            origin,
            feed.promised if feed else 0,
            used.batches if used else 0,
            used.samples if used else 0,
            self.shapes,
            cache,
            sha256_bytes(data),
            merge_degradations([*degradations, *(used.dataset.degradations if used else ())]),
        )

    def _degradations(self, origin: RangeOrigin) -> Iterator[Degradation]:
        offer, feed = self._offer, self._feed
        if origin is RangeOrigin.CACHE:
            yield from offer.degradations if offer else ()
            return
        yield from feed.degradations if feed else ()
        if offer is not None:
            message = "TensorRT did not take the calibration cache, and calibrated on the data instead"
            yield Degradation.of(DegradationCode.CACHE_REJECTED, message, [offer.origin])

    def _ranges(self) -> tuple[RangeOrigin, bytes, CalibrationCache]:
        """What TensorRT works with: the cache that it took, or the one that it wrote."""
        if not self._asked_cache or not (self._asked_batch or self._offer):
            raise CalibrationError(
                "TensorRT did not calibrate",
                got="it asked for no data" if self._asked_cache else "it asked neither for a cache nor for data",
                expected="calls of the calibrator",
                hint="a network with Q/DQ nodes has its ranges already: build it without a calibrator",
            )
        ranges = list(self._written)
        if self._asked_batch:
            self._require_all_batches()
        elif self._offer is not None:
            ranges.insert(0, (self._offer.data, self._offer.cache))
        if not ranges:
            raise CalibrationError("TensorRT wrote no calibration cache", got="all batches taken and no ranges",
                                   expected="the ranges of the network's tensors")  # fmt: skip
        if len({data for data, _ in ranges}) > 1:
            self._narrator.say("TensorRT wrote another calibration cache than before; the last one counts")
        return RangeOrigin.DATA if self._asked_batch else RangeOrigin.CACHE, *ranges[-1]

    def _require_all_batches(self) -> None:
        """Also where the binding swallowed what was raised between its call and ours, such as an interrupt."""
        feed = self._feed
        if feed is None or feed.batches < feed.promised:
            raise CalibrationError(
                "TensorRT stopped calibrating before the end of the data",
                got=f"{feed.batches if feed else 0} batches",
                expected=f"{feed.promised} batches of {feed.dataset.name}" if feed else "data",
                hint="read the messages of TensorRT and of its Python binding above",
            )

    def _provenance(self, name: str, data: bytes, cache: CalibrationCache) -> CacheProvenance:
        made = self._identity
        return CacheProvenance(
            quantlab=version("quantlab"),
            cache=name,
            cache_sha256=sha256_bytes(data),
            source="observed",
            model=made.model,
            model_sha256=made.model_sha256,
            table_sha256="",
            data_sha256=made.found.data_sha256 if made.found else "",
            preprocess_sha256=made.preprocess_sha256,
            method="tensorrt",
            algorithm=cache.algorithm,
            tensorrt=version_text(cache.version) or str(cache.version),
            tensors=len(cache.scales),
            shapes=self.shapes,
        )

    def close(self) -> None:
        """Free the device memory, and end the pass over the data."""
        if self._feed is not None:
            self._feed.close()


def make_calibrator(
    module: Any,
    algorithm: Algorithm,
    *,
    data: CalibrationData | None = None,
    table: CalibrationTable | None = None,
    cache: Path | None = None,
    model: str = "",
    model_sha256: str = "",
    legacy: LegacyOptions = DEFAULT_LEGACY,
    narrator: Narrator | None = None,
) -> Calibrator:
    """A calibrator on data, on a table, or on a cache that is read if it is there and written if not.

    Everything that can be checked without TensorRT is checked here, before an engine is built for minutes; data cost a
    pass of decoding.

    Args:
        module: The imported ``tensorrt``.
        algorithm: Which of the four classes.
        data: What to calibrate on. With a cache or a table as well, data are used only if TensorRT rejects that.
        table: Ranges in place of data; its own method's are taken, under the header that this TensorRT reads.
        cache: Cache file. If it exists, it must belong to the model, data, algorithm and version.
        model: File name of the model.
        model_sha256: Hash of the model, which binds caches and tables to it.
        legacy: For `Algorithm.LEGACY` alone.
        narrator: Told of progress and degradations.

    Raises:
        BackendUnavailable: If the module has no calibrators: TensorRT 11 and TensorRT-RTX.
        ConfigError: If there is nothing to calibrate on, or both a table and a cache.
        DataError: If the data cannot be calibrated on.
        EngineMismatch: If the cache or table was made for something else, with both values.
        CalibrationError: If the cache is damaged.
        OutputError: If the cache could not be written later.
    """
    said = narrator or Silent()
    with ExitStack() as undo:
        if data is not None:
            undo.callback(data.staging.close)
        require_calibrators(module, algorithm)
        _check_sources(data, table, cache)
        feed = CalibrationFeed(data, repeat_last=algorithm is Algorithm.MINMAX, narrator=said) if data else None
        identity = CalibrationIdentity(
            algorithm,
            ".".join(str(module.__version__).split(".")[:3]),
            model,
            model_sha256,
            str(data.dataset.describe().get("preprocess_sha256") or "") if data else "",
            feed.found if feed else None,
        )
        offer = None
        if table is not None:
            offer = offer_table(table, identity)
        elif cache is not None and is_file(cache):
            offer = offer_file(cache, identity)
        calibrator = Calibrator(module, identity, feed, offer, cache, legacy, said)
        undo.pop_all()
    return calibrator


def _check_sources(data: CalibrationData | None, table: CalibrationTable | None, cache: Path | None) -> None:
    if table is not None and cache is not None:
        raise ConfigError("a calibration table and a calibration cache were given", got=str(cache),
                          expected="one of them")  # fmt: skip
    if data is None and table is None and (cache is None or not is_file(cache)):
        got = f"{cache}, which does not exist" if cache is not None else "no data, table or cache"
        raise ConfigError("there is nothing to calibrate on", got=got, expected="data, a table, or a cache")
    if cache is not None and is_folder(cache):
        raise ConfigError(f"calibration cache {cache} is a folder", expected="a file name")
    if cache is not None and data is not None:
        check_folder(cache.parent)


__all__ = [
    "CalibrationData",
    "CalibrationOutcome",
    "Calibrator",
    "DeviceStaging",
    "LegacyOptions",
    "RangeOrigin",
    "make_calibrator",
    "network_tensors",
]
