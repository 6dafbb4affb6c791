"""``quantlab doctor``."""

from __future__ import annotations

import click

from quantlab.cli import options
from quantlab.cli.console import Console


@click.command(short_help="What works on this machine.")
@options.common
def command(console: Console) -> int:
    """Try every package and backend, each in a process of its own. Exit code 4 if no backend works."""
    from importlib.metadata import version

    from quantlab.documents import dump_json
    from quantlab.errors import ExitCode
    from quantlab.records import to_plain
    from quantlab.workflow.doctor import diagnose

    diagnosis = diagnose()
    words = {True: "ok", False: "BROKEN", None: "-"}
    lines = [f"quantlab {version('quantlab')} on {diagnosis.machine}"]
    width = max(len(finding.name) for finding in diagnosis.findings)
    lines += [f"  {words[f.works]:<7} {f.name:<{width}}  {f.detail}" for f in diagnosis.findings]
    lines.append("usable: at least one backend works" if diagnosis.usable else "not usable: no backend works")
    console.result("\n".join(lines), dump_json({"schema": "quantlab.doctor/1", **to_plain(diagnosis)}))
    return int(ExitCode.OK if diagnosis.usable else ExitCode.UNAVAILABLE)
