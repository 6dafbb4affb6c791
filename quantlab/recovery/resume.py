"""What an interrupted recovery has finished: whole steps, and layers of the step that it was in.

Everything lies in one folder under a key made of all that the result depends on; what lies there under another key is
removed. A file is written under a temporary name and renamed, so that what is found is whole; what cannot be read is
made again.
"""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.table import CalibrationTable
from quantlab.documents import dump_json, read_json
from quantlab.errors import CalibrationError, OutputError, QuantlabError
from quantlab.files import is_file, is_folder, sha256_file, write_bytes, write_text
from quantlab.graph.model import load_model, save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.weights import RoundedWeight
from quantlab.records import from_plain, to_plain
from quantlab.recovery.protocol import State
from quantlab.recovery.record import Diagnosis, StepRecord

Arrays = Mapping[str, NDArray[np.generic]]

_SCHEMA = "quantlab.recovery-steps/1"
_STEPS, _LAYERS = "steps.json", "layers"
_KEY_LENGTH = 24
_KEY = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class Finished:
    """Steps that are finished.

    Attributes:
        diagnosis: Made before the first.
        records: What each did, in order.
        state: Number of the folder that holds the state after the last.
        files: Hashes of its files, by name.
        rounded: Axis of each weight that is rounded, by initializer.
    """

    diagnosis: Diagnosis
    records: tuple[StepRecord, ...]
    state: int
    files: Mapping[str, str]
    rounded: Mapping[str, int]


class Resume:
    """Keeps finished steps and layers in a folder; keeps nothing without one.

    Raises:
        OutputError: If the folder cannot be written to, when something is kept.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = None if folder is None else folder / key[:_KEY_LENGTH]
        self._stored: Path | None = None
        if folder is None or not is_folder(folder):
            return
        for other in sorted(folder.iterdir()):
            ours = _KEY.fullmatch(other.name) and (is_file(other / _STEPS) or is_folder(other / _LAYERS))
            if ours and other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def steps(self, prepared: Prepared) -> tuple[Finished, State] | None:
        """The finished steps and the state after them; None if there are none that can be read."""
        if self.folder is None or not is_file(self.folder / _STEPS):
            return None
        try:
            document = read_json(self.folder / _STEPS, _SCHEMA, CalibrationError, "finished recovery steps")
            document.pop("schema")
            found = from_plain(Finished, document, str(self.folder / _STEPS), CalibrationError)
            place = self.folder / f"state-{found.state}"
            for name, expected in found.files.items():
                if sha256_file(place / name) != expected:
                    return None
            state = State(
                _prepared(prepared, place / "model.onnx"),
                CalibrationTable.load(place / "calibration.json"),
                _rounded(place / "weights.npz", found.rounded),
                _prepared(prepared, place / "target.onnx") if "target.onnx" in found.files else None,
            )
        except (QuantlabError, OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        self._stored = place
        return found, state

    def keep_step(self, diagnosis: Diagnosis, records: tuple[StepRecord, ...], state: State) -> None:
        """Keep a step that is finished, with the state after it; its layers are forgotten.

        Each state lies in a folder of its own, so that an interruption loses nothing, and a state whose weights are
        read from files that lie here keeps them.
        """
        if self.folder is None:
            return
        with _writing(self.folder):
            if self._stored is None or records[-1].kept:
                self._stored = self.folder / f"state-{len(records)}"
                self._stored.mkdir(parents=True, exist_ok=True)
                _write_state(self._stored, state)
            files = {path.name: sha256_file(path) for path in sorted(self._stored.iterdir())}
            axes = {name: weight.axis for name, weight in state.rounded.items()}
            number = int(self._stored.name.removeprefix("state-"))
            found = Finished(diagnosis, records, number, files, axes)
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
            with _writing(self.folder):
                (self.folder / _LAYERS).mkdir(parents=True, exist_ok=True)
                _write(self.folder / _LAYERS / f"{step}-{number}.npz", arrays)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}", got=error.strerror or str(error), hint="check permissions and free space"
        ) from error


def _write_state(place: Path, state: State) -> None:
    save_model(state.model.proto, place / "model.onnx", state.model)
    if state.target is not None:
        save_model(state.target.model.proto, place / "target.onnx", state.target.model)
    write_text(place / "calibration.json", state.table.to_json())
    names = sorted(state.rounded)
    arrays: dict[str, NDArray[np.generic]] = {f"codes.{i}": state.rounded[n].codes for i, n in enumerate(names)}
    _write(place / "weights.npz", arrays | {f"scales.{i}": state.rounded[n].scales for i, n in enumerate(names)})


def _write(path: Path, arrays: Arrays) -> None:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())


def _prepared(prepared: Prepared, path: Path) -> Prepared:
    """A stored graph with the provenance of the model that it was made of."""
    named = replace(load_model(path), path=prepared.model.path, sha256=prepared.model.sha256)
    return replace(prepared, model=named)


def _rounded(path: Path, axes: Mapping[str, int]) -> dict[str, RoundedWeight]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {
            name: RoundedWeight(archive[f"codes.{i}"], archive[f"scales.{i}"], axes[name])
            for i, name in enumerate(sorted(axes))
        }
