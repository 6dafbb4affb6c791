"""What came of measuring stability; ``stability.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlab.degradation import Degradation
from quantlab.documents import dump_json, read_json
from quantlab.errors import CalibrationError
from quantlab.records import from_plain, to_plain

STABILITY_SCHEMA = "quantlab.stability/1"


@dataclass(frozen=True, slots=True)
class SizeStability:
    """Ranges from subsets of one number of images, against those of all images; over tensors and subsets.

    Attributes:
        images: Images of the largest of the subsets; they differ by a few if the groups do.
        groups: Groups of each subset.
        subsets: How many subsets were taken.
        loss_db_median: Half of the ranges lose no more expected SQNR than this, in dB; below zero they gain.
        loss_db_p95: 95 % of the ranges lose no more.
        movement_median: Half of the ranges move no further: the bound that moves more, relative to the larger bound.
        movement_p95: 95 % of the ranges move no further.
        worst_tensor: Tensor of the largest loss.
        worst_loss_db: That loss.
    """

    images: int
    groups: int
    subsets: int
    loss_db_median: float
    loss_db_p95: float
    movement_median: float
    movement_p95: float
    worst_tensor: str
    worst_loss_db: float

    def settled(self, loss_db: float, movement: float) -> bool:
        """Whether 95 % of the ranges are as good as those of all images, within these limits."""
        return self.loss_db_p95 <= loss_db and self.movement_p95 <= movement


@dataclass(frozen=True, slots=True)
class TensorStability:
    """One tensor.

    Attributes:
        name: Name in the prepared graph.
        low: Lower bound from all images.
        high: Upper bound from all images.
        spread: How far the bounds from the single groups lie apart, largest less smallest, relative to the larger
            bound from all images; of the two bounds the one that differs more.
        movements: How far the range moved in the subset where it moved most, by size.
        losses_db: Expected SQNR lost on the values of all images in the subset where most was lost, in dB, by size.
    """

    name: str
    low: float
    high: float
    spread: float
    movements: tuple[float, ...]
    losses_db: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stability:
    """How far ranges move with the number of images.

    Attributes:
        model: File name of the model.
        model_sha256: Its hash.
        data_sha256: Digest of the samples.
        table_sha256: Hash of the calibration table over all images.
        method: Method whose ranges were compared; for ``auto`` the one that it picked for each tensor.
        scheme: Scheme of the ranges.
        n_samples: All images.
        n_groups: Groups that they were counted in.
        n_constant: Tensors left out because they have one value only.
        seed: Of groups and subsets.
        enough_loss_db: Loss that counts as none.
        enough_movement: Movement that counts as none.
        enough_images: Least number of images from which on all sizes are settled; None if none is.
        sizes: By number of images, ascending.
        tensors: By name.
        degradations: Of the calibration.
    """

    model: str
    model_sha256: str
    data_sha256: str
    table_sha256: str
    method: str
    scheme: str
    n_samples: int
    n_groups: int
    n_constant: int
    seed: int
    enough_loss_db: float
    enough_movement: float
    enough_images: int | None
    sizes: tuple[SizeStability, ...]
    tensors: tuple[TensorStability, ...]
    degradations: tuple[Degradation, ...]

    @property
    def conclusion(self) -> str:
        """The finding in one sentence."""
        if not self.sizes:
            return "no tensor has more than one value: there are no ranges to compare"
        if self.enough_images is not None:
            return f"{self.enough_images:,} images would have been enough: from there on the ranges hardly change"
        last = self.sizes[-1]
        return (
            f"even {self.n_samples:,} images are not shown to be enough: between {last.images:,} and all of them the "
            f"ranges still move by {100 * last.movement_p95:.3g} % and lose {last.loss_db_p95:.2g} dB (95th "
            "percentile); use more"
        )

    @property
    def rule(self) -> str:
        """What counts as enough."""
        return (
            f"enough: from that number of images on, 95 % of the ranges lose at most {self.enough_loss_db:g} dB and "
            f"move at most {100 * self.enough_movement:g} %"
        )

    @property
    def caveat(self) -> str:
        """What the numbers do not show."""
        return (
            "the subsets are parts of the images that they are compared with, so against fresh images the ranges move "
            "more than shown, the more so the larger the subset"
        )

    def least_stable(self) -> tuple[TensorStability, ...]:
        """The tensors, those first whose ranges lose most at the largest size."""
        return tuple(sorted(self.tensors, key=lambda t: (-t.losses_db[-1], -t.movements[-1], t.name)))

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": STABILITY_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Stability:
        """Read ``stability.json``.

        Raises:
            CalibrationError: If it is missing, damaged, of another schema, or does not fit together.
        """
        document = read_json(path, STABILITY_SCHEMA, CalibrationError, "stability result")
        document.pop("schema")
        found = from_plain(cls, document, str(path), CalibrationError)
        expected = len(found.sizes)
        for tensor in found.tensors:
            got = (len(tensor.movements), len(tensor.losses_db))
            if got != (expected, expected) or not expected:
                raise CalibrationError(
                    f"{path}: tensor {tensor.name!r} does not fit the sizes",
                    got=f"{got[0]} movements and {got[1]} losses",
                    expected=f"one for each of {expected} sizes, at least one",
                    hint="calibrate again with --stability",
                )
        return found


def images_enough(sizes: Sequence[SizeStability], loss_db: float, movement: float) -> int | None:
    """The least number of images from which on every size is settled; None if the largest is not."""
    enough = None
    for size in reversed(sizes):
        if not size.settled(loss_db, movement):
            break
        enough = size.images
    return enough
