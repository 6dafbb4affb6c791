"""A recovered model on disk: the folder ``recovered`` beside the calibration table that it was made with."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.table import CalibrationTable
from quantlab.engines.variant import RecoveredModel
from quantlab.errors import CalibrationError, EngineMismatch, OutputError
from quantlab.files import is_file, remove_file, sha256_file, write_text
from quantlab.graph.metadata import with_recovery
from quantlab.graph.model import Model, load_model, model_inputs, model_outputs, save_model
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import TargetProfile
from quantlab.graph.weights import RoundedWeight
from quantlab.recovery.result import AGAIN, DATA, MODEL, TABLE, WEIGHTS, Recovery
from quantlab.recovery.simulation import with_values

if TYPE_CHECKING:
    from quantlab.recovery.recover import Recovered

RECOVERED, RESUME = "recovered", ".recovery"
"""Names of the folder, and of the one in which an interrupted recovery keeps its finished steps."""
RECOVERY_NAME = "recovery.json"

_FORMAT = 1
_DAMAGES = (
    OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises for files that hold no arrays, or absurd ones."""


def kept_steps(recovered: Recovered) -> tuple[str, ...]:
    """Names of the steps that were kept, in order."""
    return tuple(step.name for step in recovered.record.steps if step.kept)


def save_recovery(
    folder: Path, recovered: Recovered, prepared: Prepared, table: CalibrationTable, target: TargetProfile
) -> Recovery:
    """Write the folder of a recovered model, whole or not at all; an earlier one is replaced.

    Args:
        folder: The folder to write, ``recovered`` beside the table.
        recovered: What the steps ended with.
        prepared: The model that they started from.
        table: The calibration table that they started from.
        target: Rules that they worked for.

    Raises:
        OutputError: If it cannot be written, or the folder holds files that are not those of a recovery.
    """
    steps = kept_steps(recovered)
    state, source = recovered.state, prepared.model
    with _replacing(folder) as place:
        proto = with_recovery(state.model.proto, steps) if steps else state.model.proto
        written = save_model(proto, place / MODEL, state.model)
        write_text(place / TABLE, replace(state.table, recovered=steps).to_json())
        _save_weights(place / WEIGHTS, state.rounded)
        files = [*written, place / TABLE, place / WEIGHTS]
        found = Recovery(
            quantlab=version("quantlab"),
            model=source.path.name if source.path else source.name,
            model_sha256=source.sha256,
            graph_sha256=prepared.graph_sha256,
            table_sha256=table.sha256,
            target=target.name,
            method=table.method,
            steps=steps,
            record=recovered.record,
            degradations=tuple(recovered.degradations),
            files={path.name: sha256_file(path) for path in sorted(files)},
            exclude=recovered.exclude,
        )
        write_text(place / RECOVERY_NAME, found.to_json())
    return found


def load_recovery(folder: Path, prepared: Prepared, table: CalibrationTable) -> RecoveredModel:
    """Read a recovered model and check that it is whole and belongs to a model and its calibration.

    Args:
        folder: The folder that `save_recovery` wrote.
        prepared: The model.
        table: The calibration table, with the method that it was written with.

    Raises:
        EngineMismatch: If it belongs to another model, prepared graph or table, with both hashes.
        CalibrationError: If a file is missing, damaged or holds what it cannot.
        ModelError: If its model cannot be used.
    """
    found = Recovery.load(folder / RECOVERY_NAME)
    for what, got, expected in (
        ("model", found.model_sha256, prepared.model.sha256),
        ("prepared graph", found.graph_sha256, prepared.graph_sha256),
        ("calibration table", found.table_sha256, table.sha256),
    ):
        if got != expected:
            raise EngineMismatch(
                f"{folder} belongs to another {what} ({found.model})",
                got=f"sha256 {got[:16]}... in {RECOVERY_NAME}",
                expected=f"sha256 {expected[:16]}... of {prepared.model.name}",
                hint=AGAIN,
            )
    check_files(folder, found)
    model = load_model(folder / MODEL)
    _check_ends(folder, model, prepared.model)
    own = CalibrationTable.load(folder / TABLE)
    for what, value, wanted in (
        ("steps", ", ".join(own.recovered), ", ".join(found.steps)),
        ("range method", own.method, found.method),
    ):
        if value != wanted:
            raise CalibrationError(
                f"{folder / TABLE} has other {what} than {RECOVERY_NAME}", got=value, expected=wanted, hint=AGAIN
            )
    rounded = load_weights(folder / WEIGHTS, model)
    # A layer that is excluded computes with the weight that its bias was made for.
    proto = with_values(model.proto, {name: weight.values() for name, weight in rounded.items()})
    named = replace(model.with_proto(proto), path=prepared.model.path, sha256=prepared.model.sha256)
    return RecoveredModel(
        named, own, rounded, found.target, found.method, found.steps, found.sha256, found.degradations, found.exclude
    )


def check_files(folder: Path, recovery: Recovery) -> None:
    """Check that the files beside a ``recovery.json`` are those that it describes.

    Raises:
        CalibrationError: If one is missing or another.
    """
    if DATA not in recovery.files and is_file(folder / DATA):
        raise CalibrationError(f"{folder} holds a file {DATA} that {RECOVERY_NAME} does not name", hint=AGAIN)
    for name, expected in recovery.files.items():
        try:
            got = f"sha256 {sha256_file(folder / name)[:16]}..."
        except OSError as cause:
            got = cause.strerror or str(cause)
        if got != f"sha256 {expected[:16]}...":
            raise CalibrationError(
                f"{folder / name} is not the file that {RECOVERY_NAME} describes",
                got=got,
                expected=f"sha256 {expected[:16]}...",
                hint=AGAIN,
            )


def remove_recovery(folder: Path) -> None:
    """Remove the files of a recovery, and the folder unless it holds others; without ``recovery.json``, nothing.

    Raises:
        OutputError: If a file cannot be removed.
    """
    found = recovery_files(folder)
    if not found:
        return
    for path in reversed(found):  # the marker last, or what is left after an interruption would be nobody's
        remove_file(path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def recovery_files(folder: Path) -> tuple[Path, ...]:
    """The files of a recovery that are there, ``recovery.json`` first; without that none, for they are others'."""
    if not is_file(folder / RECOVERY_NAME):
        return ()
    paths = (folder / name for name in (RECOVERY_NAME, MODEL, DATA, TABLE, WEIGHTS))
    return tuple(path for path in paths if is_file(path))


def check_place(folder: Path) -> None:
    """Refuse a place that a recovery cannot be written to, before any work is done for it.

    Raises:
        OutputError: If it is no folder, or holds files that are not those of a recovery.
    """
    try:
        if not os.path.lexists(folder):
            return
        own = folder.is_dir() and not folder.is_symlink()
        own = own and set(folder.iterdir()) == set(recovery_files(folder))
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not own:
        got = "files that are not those of a recovery"
        raise OutputError(f"cannot write {folder}", got=got, hint="move them away, or use -o")


def load_weights(path: Path, model: Model) -> dict[str, RoundedWeight]:
    """Read rounded weights and check that they are weights of a model.

    Raises:
        CalibrationError: If the file is missing, damaged, or does not fit the model.
    """
    try:
        # numpy.load leaks the file of a damaged archive if it opens it itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            found = int(arrays["format"])
            names, axes = arrays["names"], arrays["axes"]
            if found == _FORMAT:
                rounded = {
                    str(name): RoundedWeight(arrays[f"codes.{i}"], arrays[f"scales.{i}"], int(axis))
                    for i, (name, axis) in enumerate(zip(names, axes, strict=True))
                }
    except _DAMAGES as cause:
        raise CalibrationError(f"cannot read rounded weights {path}", got=str(cause), hint=AGAIN) from cause
    if found != _FORMAT:
        got, expected = f"format {found}", f"format {_FORMAT}"
        raise CalibrationError(f"{path} holds rounded weights of another format", got=got, expected=expected)
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}
    for name, weight in rounded.items():
        if (reason := _misfit(weight, stored.get(name))) is not None:
            raise CalibrationError(f"{path}: {name!r} is no rounded weight of the model", got=reason, hint=AGAIN)
    return rounded


def _misfit(weight: RoundedWeight, shape: tuple[int, ...] | None) -> str | None:
    """Why codes and scales are not those of a weight of that shape; None if they are."""
    codes, scales, axis = weight.codes, weight.scales, weight.axis
    if shape is None:
        return "no initializer of that name"
    if (codes.dtype.name, scales.dtype.name) != ("int8", "float32"):
        return f"codes of type {codes.dtype}, scales of type {scales.dtype}, not int8 and float32"
    if codes.shape != shape:
        return f"codes of shape {codes.shape}, the weight has {shape}"
    if not 0 <= axis < codes.ndim or scales.shape != (shape[axis],):
        return f"scales of shape {scales.shape} along axis {axis} of {shape}"
    if codes.size and int(codes.min()) < -127:
        return "the code -128"
    return None if bool(np.all(np.isfinite(scales) & (scales > 0))) else "a scale that is no positive number"


def _save_weights(path: Path, rounded: Mapping[str, RoundedWeight]) -> None:
    names = sorted(rounded)
    arrays: dict[str, NDArray[np.generic]] = {
        "format": np.array(_FORMAT),
        "names": np.array(names, dtype=np.str_),
        "axes": np.array([rounded[name].axis for name in names], np.int64),
    }
    for i, name in enumerate(names):
        arrays[f"codes.{i}"], arrays[f"scales.{i}"] = rounded[name].codes, rounded[name].scales
    try:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise _unwritable(path, error) from error


def _check_ends(folder: Path, model: Model, original: Model) -> None:
    for what, own, theirs in (
        ("inputs", model_inputs(model.proto), model_inputs(original.proto)),
        ("outputs", model_outputs(model.proto), model_outputs(original.proto)),
    ):
        if own != theirs:
            raise CalibrationError(
                f"{folder / MODEL} has other {what} than the model that it was made of",
                got=", ".join(spec.name for spec in own),
                expected=", ".join(spec.name for spec in theirs),
                hint=AGAIN,
            )


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``; on success it takes that name, otherwise it is removed.

    Raises:
        OutputError: If it cannot be made, or ``folder`` holds files that are not those of a recovery.
    """
    place = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        place.mkdir(parents=True)
        yield place
        remove_recovery(folder)
        place.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> OutputError:
    hint = "check permissions and free space, move other files away, or use -o"
    return OutputError(f"cannot write {path}", got=error.strerror or str(error), hint=hint)
