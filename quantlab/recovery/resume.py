"""What an interrupted recovery has finished: whole steps, and layers of the step that it was in.

Everything lies in one folder under a key made of all that the result depends on; what lies there under another key is
removed. A file is written under a temporary name and renamed, so that what is found is whole; what cannot be read is
made again.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.table import CalibrationTable
from quantlab.documents import dump_json, read_json
from quantlab.errors import CalibrationError, QuantlabError
from quantlab.files import is_file, is_folder, sha256_file, write_bytes, write_text
from quantlab.graph.model import Model, load_model, save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.weights import RoundedWeight
from quantlab.records import from_plain, to_plain
from quantlab.recovery.protocol import State
from quantlab.recovery.record import Diagnosis, StepRecord

Arrays = Mapping[str, NDArray[np.generic]]

_SCHEMA = "quantlab.recovery-steps/1"
_STEPS, _LAYERS = "steps.json", "layers"


@dataclass(frozen=True, slots=True)
class Finished:
    """Steps that are finished.

    Attributes:
        diagnosis: Made before the first.
        records: What each did, in order.
        files: Hashes of the files that hold the state after the last, by name.
        rounded: Axis of each weight that is rounded, by initializer.
    """

    diagnosis: Diagnosis
    records: tuple[StepRecord, ...]
    files: Mapping[str, str]
    rounded: Mapping[str, int]


class Resume:
    """Keeps finished steps and layers in a folder; keeps nothing without one.

    Raises:
        OutputError: If the folder cannot be written to, when something is kept.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = None if folder is None else folder / key[:24]
        if folder is not None and is_folder(folder):
            for other in folder.iterdir():
                if other.name != key[:24] and is_folder(other):
                    shutil.rmtree(other, ignore_errors=True)

    def steps(self, prepared: Prepared) -> tuple[Finished, State] | None:
        """The finished steps and the state after them; None if there are none that can be read."""
        if self.folder is None or not is_file(self.folder / _STEPS):
            return None
        try:
            document = read_json(self.folder / _STEPS, _SCHEMA, CalibrationError, "finished recovery steps")
            document.pop("schema")
            found = from_plain(Finished, document, str(self.folder / _STEPS), CalibrationError)
            for name, expected in found.files.items():
                if sha256_file(self.folder / name) != expected:
                    return None
            state = State(
                self._prepared(prepared, "model"),
                CalibrationTable.load(self.folder / "calibration.json"),
                self._rounded(found.rounded),
                self._prepared(prepared, "target") if "target.onnx" in found.files else None,
            )
        except (QuantlabError, OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return found, state

    def keep_step(self, diagnosis: Diagnosis, records: tuple[StepRecord, ...], state: State) -> None:
        """Keep a step that is finished, with the state after it; its layers are forgotten."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _STEPS).unlink(missing_ok=True)
        written = [*save_model(state.model.proto, self.folder / "model.onnx", state.model)]
        if state.target is not None:
            written += save_model(state.target.model.proto, self.folder / "target.onnx", state.target.model)
        write_text(self.folder / "calibration.json", state.table.to_json())
        names = sorted(state.rounded)
        arrays: dict[str, NDArray[np.generic]] = {f"codes.{i}": state.rounded[n].codes for i, n in enumerate(names)}
        arrays |= {f"scales.{i}": state.rounded[n].scales for i, n in enumerate(names)}
        self._write(self.folder / "weights.npz", arrays)
        written += [self.folder / "calibration.json", self.folder / "weights.npz"]
        files = {path.name: sha256_file(path) for path in written}
        found = Finished(diagnosis, records, files, {name: state.rounded[name].axis for name in names})
        write_text(self.folder / _STEPS, dump_json({"schema": _SCHEMA, **to_plain(found)}))
        shutil.rmtree(self.folder / _LAYERS, ignore_errors=True)

    def layer(self, step: str, number: int) -> dict[str, NDArray[np.generic]] | None:
        """What a step made of its layer of this number; None if it is not finished."""
        if self.folder is None:
            return None
        path = self.folder / _LAYERS / f"{step}-{number}.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def keep_layer(self, step: str, number: int, arrays: Arrays) -> None:
        """Keep what a step made of a layer."""
        if self.folder is not None:
            (self.folder / _LAYERS).mkdir(parents=True, exist_ok=True)
            self._write(self.folder / _LAYERS / f"{step}-{number}.npz", arrays)

    def _write(self, path: Path, arrays: Arrays) -> None:
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        write_bytes(path, stream.getvalue())

    def _prepared(self, prepared: Prepared, name: str) -> Prepared:
        """A stored graph with the provenance of the model that it was made of."""
        if self.folder is None:
            raise ValueError("no folder")
        model: Model = load_model(self.folder / f"{name}.onnx")
        named = replace(model, path=prepared.model.path, sha256=prepared.model.sha256)
        return replace(prepared, model=named)

    def _rounded(self, axes: Mapping[str, int]) -> dict[str, RoundedWeight]:
        if self.folder is None:
            raise ValueError("no folder")
        with (self.folder / "weights.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {
                name: RoundedWeight(archive[f"codes.{i}"], archive[f"scales.{i}"], axes[name])
                for i, name in enumerate(sorted(axes))
            }
