"""What came of a recovery; ``recovery.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantlab.degradation import Degradation
from quantlab.documents import canonical_sha256, dump_json, read_json
from quantlab.errors import CalibrationError
from quantlab.records import from_plain, to_plain
from quantlab.recovery.record import RecoveryRecord

RECOVERY_SCHEMA = "quantlab.recovery/1"

MODEL, DATA, TABLE, WEIGHTS = "model.onnx", "model.onnx.data", "calibration.json", "weights.npz"
"""Files of a recovery; the second is there for large models only."""

AGAIN = "run quantlab calibrate --recover again; build --recovered ignore builds without it"
"""What to do about a recovery that cannot be used."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of a recovery, and what it belongs to; ``recovery.json``. It holds no paths.

    Attributes:
        quantlab: Version.
        model: File name of the source model.
        model_sha256: Its hash.
        graph_sha256: Hash of the prepared graph that was recovered.
        table_sha256: Hash of the calibration table that it was made with.
        target: Name of the Q/DQ rules that it was made for.
        method: Range method.
        steps: Names of the steps that were kept, in order.
        record: What each step did.
        degradations: Of the recovery.
        files: Hashes of the other files of the folder, by name.
        exclude: Names or patterns of the layers that stayed in floating point.
    """

    quantlab: str
    model: str
    model_sha256: str
    graph_sha256: str
    table_sha256: str
    target: str
    method: str
    steps: tuple[str, ...]
    record: RecoveryRecord
    degradations: tuple[Degradation, ...]
    files: Mapping[str, str]
    exclude: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the recovered model and of what it belongs to; times are not in it."""
        plain = to_plain(self)
        return canonical_sha256({name: value for name, value in plain.items() if name not in ("quantlab", "record")})

    def to_json(self) -> str:
        """The document as text."""
        return dump_json({"schema": RECOVERY_SCHEMA, **to_plain(self)})

    @classmethod
    def load(cls, path: Path) -> Recovery:
        """Read ``recovery.json``.

        Raises:
            CalibrationError: If it is missing, damaged, of another schema, or names other files than its own.
        """
        document = read_json(path, RECOVERY_SCHEMA, CalibrationError, "recovery")
        document.pop("schema")
        found = from_plain(cls, document, str(path), CalibrationError)
        names = {*found.files}
        if names - {DATA} != {MODEL, TABLE, WEIGHTS}:
            raise CalibrationError(
                f"{path} names other files than those of a recovery",
                got=", ".join(sorted(names)) or "none",
                expected=f"{MODEL}, {TABLE}, {WEIGHTS}",
                hint=AGAIN,
            )
        return found
