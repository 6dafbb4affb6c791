"""Recovery in the workflow: refused where it cannot be, carried out after calibration, found again before a build."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from quantlab.calibrators.table import CalibrationTable
from quantlab.datasets import Dataset
from quantlab.engines.variant import RecoveredModel
from quantlab.errors import ConfigError, ModelError, OutputError
from quantlab.files import is_folder
from quantlab.graph.checks import has_qdq
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.metadata import with_recovery
from quantlab.graph.model import Model
from quantlab.graph.prepare import Prepared
from quantlab.graph.qdq import check_quantized, quantize_model
from quantlab.graph.targets import QuantizationKind, TargetProfile
from quantlab.progress import Narrator
from quantlab.recovery.artifact import RECOVERED, RESUME, kept_steps, load_recovery, recovery_files

if TYPE_CHECKING:
    from quantlab.recovery.recover import Recovered

NO_STEPS = "none"
"""What ``--recover`` says for no recovery."""


def recovery_steps(text: str, kind: QuantizationKind, existing: ExistingPolicy) -> tuple[str, ...]:
    """The steps that ``--recover`` asks for.

    Args:
        text: ``default``, ``none``, or names of steps separated by commas.
        kind: Which operands are to become 8-bit numbers.
        existing: What is to be done with Q/DQ pairs that the model holds.

    Raises:
        ConfigError: If there is no such step, or recovery does not go with the rest.
    """
    if text == NO_STEPS:
        return ()  # without the imports
    from quantlab.recovery.recover import parse_steps

    steps = parse_steps(text)
    if steps and kind is not QuantizationKind.INT8:
        raise _not_for(kind)
    if steps and existing is not ExistingPolicy.REFUSE:
        raise ConfigError(
            "--recover is for models that hold no Q/DQ pairs",
            got=f"--existing {existing}",
            expected=f"--existing {ExistingPolicy.REFUSE}, the default",
            hint="leave out --recover, or --existing",
        )
    return steps


def _not_for(kind: QuantizationKind) -> ConfigError:
    return ConfigError(
        "recovery makes up for INT8 activations and weights",
        got=f"--kind {kind}",
        expected=f"--kind {QuantizationKind.INT8}",
        hint="leave out --recover, or --kind",
    )


def check_recoverable(prepared: Prepared) -> None:
    """Refuse a model that is quantized already, before any work is done.

    Raises:
        ModelError: If it holds Q/DQ pairs.
    """
    if has_qdq(prepared.model.proto):
        raise ModelError(
            f"model {prepared.model.name} is quantized already, and recovery starts from a floating-point model",
            got="QuantizeLinear or DequantizeLinear nodes",
            expected="a model without them",
            hint="recover the floating-point model that it was made of, or leave out --recover",
        )


def recover_calibrated(
    prepared: Prepared,
    dataset: Dataset,
    table: CalibrationTable,
    steps: tuple[str, ...],
    target: TargetProfile,
    threads: int,
    folder: Path,
    narrator: Narrator,
) -> Recovered | None:
    """Carry out the steps on a model that was just calibrated.

    Args:
        prepared: The model.
        dataset: The samples that it was calibrated on.
        table: The result.
        steps: Names of the steps; with none of them nothing is done.
        target: Rules of the quantized model.
        threads: Workers.
        folder: Of the calibration; finished steps are kept in it, so that an interrupted recovery goes on.
        narrator: Told of progress.

    Raises:
        QuantlabError: As `quantlab.recovery.recover.recover`.
    """
    if not steps:
        return None
    from quantlab.recovery.recover import RecoverSettings, recover

    settings = RecoverSettings(steps=steps, target=target, threads=threads, folder=folder / RESUME)
    recovered = recover(prepared, dataset, table, settings, narrator)
    if kept_steps(recovered):
        narrator.say("recovery: the TensorRT cache stays that of the model as it was, for weights are in no cache")
    return recovered


def written_graph(
    prepared: Prepared,
    table: CalibrationTable,
    target: TargetProfile,
    kind: QuantizationKind,
    existing: ExistingPolicy,
    recovered: Recovered | None,
) -> tuple[ModelProto, Model]:
    """The Q/DQ graph of a calibration, checked, and the model whose external data it refers to.

    That of a recovered model says so.

    Raises:
        QuantlabError: As `quantlab.graph.qdq.quantize_model`.
        ConfigError: Also if what was recovered is not to become INT8, or was made for another target or table.
    """
    if recovered is None:
        made, source = quantize_model(prepared.model, table, target, kind=kind, existing=existing).proto, prepared.model
    elif kind is not QuantizationKind.INT8:
        raise _not_for(kind)
    else:
        _check_origin(recovered, table, target)
        made, source = recovered.state.quantized(target, recovered.exclude).proto, recovered.state.model
        steps = kept_steps(recovered)
        made = with_recovery(made, steps) if steps else made
    check_quantized(made)
    return made, source


def _check_origin(recovered: Recovered, table: CalibrationTable, target: TargetProfile) -> None:
    """Refuse a recovery of another target or table; one that does not state them is taken at its word.

    Raises:
        ConfigError: With both values.
    """
    for what, of, got in (
        ("target", recovered.target, target.name),
        ("calibration table", recovered.table_sha256, table.sha256),
    ):
        if of not in ("", got):
            raise ConfigError(
                f"the recovery was made for another {what}",
                got=got,
                expected=of,
                hint="recover with what is to be written",
            )


def forget_steps(folder: Path) -> None:
    """Remove the finished steps of a recovery, which its result replaces.

    Raises:
        OutputError: If they cannot be removed.
    """
    place = folder / RESUME
    if is_folder(place):
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise OutputError(
                f"cannot remove {place}", got=error.strerror or str(error), hint="check permissions"
            ) from error


def find_recovery(path: Path, table: CalibrationTable, prepared: Prepared, narrator: Narrator) -> RecoveredModel | None:
    """The recovered model that lies beside a calibration table; None without one: a folder of that name is not enough.

    If no step was kept, it is the model as it was calibrated, and tells builds why nothing was done.

    Args:
        path: Of the table.
        table: The table as it was read, with its own method.
        prepared: The model.
        narrator: Told what is there.

    Raises:
        EngineMismatch: If it belongs to another model or table.
        CalibrationError: If it is damaged.
    """
    folder = path.parent / RECOVERED
    if table.recovered or not recovery_files(folder):
        return None
    found = load_recovery(folder, prepared, table)
    if not found.steps:
        narrator.say(f"recovery: no step was kept, so that {folder} holds the model as it was calibrated")
    else:
        narrator.say(f"recovery: {folder}, by {', '.join(found.steps)}")
    return found
