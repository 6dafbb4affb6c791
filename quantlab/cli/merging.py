"""``quantlab calibrate --merge``: calibrations of parts of the data instead of images."""

from __future__ import annotations

from pathlib import Path

import click

from quantlab.cli import options
from quantlab.cli.console import Console

merge = click.option(
    "--merge", is_flag=True, help="Merge PARTS, finished calibrations of disjoint parts of the data; takes no --data."
)
data = click.option(
    "--data",
    metavar="SOURCE",
    help="Folder of images, glob, list file, .npz, .npy, IDX file, package.module:factory, or torchvision:NAME.",
)
stability = click.option(
    "--stability",
    is_flag=True,
    help="Say how far the ranges move with fewer images, and how many would have been enough; writes stability.json.",
)
parts = click.argument("parts", nargs=-1, type=options.PATH)

_OF_DATA = (
    "data",
    "labels",
    "preprocess",
    "shapes",
    "limit",
    "percentile",
    "seed",
    "stability",
    "minmax_only",
    "recover",
)


def stated(name: str) -> bool:
    """Whether the user gave a flag of the command that runs, in place of its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not None and source is not click.core.ParameterSource.DEFAULT


def check_flags(merging: bool, given: tuple[Path, ...]) -> None:
    """Refuse flags that go together with neither images nor parts.

    Raises:
        click.UsageError: If parts are named without ``--merge``, ``--merge`` comes with flags about images, or images
            are missing.
    """
    context = click.get_current_context()
    if not merging:
        if given:
            raise click.UsageError(
                f"unexpected argument {given[0]}: name images with --data, parts with --merge", context
            )
        if stated("stability") and stated("minmax_only"):
            raise click.UsageError("--stability needs counted values, which --minmax-only does not take", context)
        if not stated("data"):
            raise click.UsageError("missing option '--data': what are the images?", context)
        return
    for parameter in context.command.params:
        if parameter.name in _OF_DATA and stated(parameter.name):
            raise click.UsageError(f"--merge takes no {parameter.opts[-1]}: it is that of the parts", context)


def run_merge(
    given: tuple[Path, ...],
    model: Path | None,
    method: str,
    target: str,
    kind: str,
    existing: str,
    threads: int,
    out: Path,
    force: bool,
    console: Console,
) -> None:
    """Merge, write the files of a calibration, and show the result."""
    from quantlab.documents import dump_json
    from quantlab.workflow.build import existing_policy, quantization_kind, target_for
    from quantlab.workflow.calibrate import check_overwrite, summary_document, summary_text, write_calibration
    from quantlab.workflow.merge import check_output, merge_calibrations
    from quantlab.workflow.sources import find_model, thread_count

    profile, wanted, policy = target_for(target), quantization_kind(kind), existing_policy(existing)
    profile.limits(wanted)
    check_output(out, given)
    requested = method if stated("method") else None
    merged = merge_calibrations(given, find_model(model, Path()), requested, thread_count(threads), console)
    check_overwrite(out, merged.prepared, force=force)
    files = write_calibration(
        out, merged.prepared, merged.table, merged.histograms, profile, kind=wanted, existing=policy
    )
    for degradation in merged.table.degradations:
        console.warn(degradation)
    console.result(summary_text(merged.table, files, console.style), dump_json(summary_document(merged.table, files)))
