"""Tables of results: every row, and the best of each peer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

USUAL = "quantlab/default-s8"
"""The row whose machine and number of threads the others' seconds are compared with."""

FIGURES = ("dB", "agreement", "layers")

Row = dict[str, Any]


def every_row(rows: Sequence[Row]) -> str:
    """One table for each model, best SQNR first; failures last, with their error; and what was installed.

    Seconds and memory are in brackets where a row was taken with another processor, or number of threads, than that of
    `USUAL`: they do not compare with it.
    """
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        lines += ["", f"### {model}", ""]
        lines.append(
            "| peer | configuration | images | rules | layers | SQNR dB | agreement % (95 %) | top-1 loss pp (95 %) "
            "| seconds | CPU s | peak MiB |"
        )
        lines.append("| --- " * 11 + "|")
        usual = next((place(row) for row in mine if name(row) == USUAL), None)
        for row in sorted(mine, key=lambda row: -sqnr(row)):
            lines.append("| " + " | ".join(_cells(row, usual)) + " |")
    installed = {
        f"{row['peer']}: " + ", ".join(f"{name} {version}" for name, version in row["versions"].items()): None
        for row in rows
    }
    return "\n".join([*lines, *(line for one in installed for line in ("", f"{one}."))]).lstrip("\n") + "\n"


def best_rows(rows: Sequence[Row]) -> str:
    """One table for each model: of each peer the row with the best SQNR, by TensorRT's rules and by others."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and not row["error"]]
        lines += ["", f"### {model}", ""]
        heads = (
            "peer",
            *(word for best in ("TensorRT's rules", "zero-points") for word in (f"best with {best}", *FIGURES)),
        )
        lines.append("| " + " | ".join(heads) + " |")
        lines.append("| --- " * 9 + "|")
        for peer in dict.fromkeys(row["peer"] for row in mine):
            cells = [peer]
            for by_tensorrt in (True, False):
                found = [row for row in mine if row["peer"] == peer and is_by_tensorrt(row) == by_tensorrt]
                best = max(found, key=sqnr, default=None)
                cells += ["-"] * 4 if best is None else _short(best)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).lstrip("\n") + "\n"


def is_by_tensorrt(row: Row) -> bool:
    """Whether a model has int8 activations without zero-points, and float (or folded int32) biases."""
    return str(row["graph"]["rules"]).startswith("tensorrt")


def name(row: Row) -> str:
    """Peer and configuration."""
    return f"{row['peer']}/{row['configuration']}"


def place(row: Row) -> tuple[str, int]:
    """What seconds depend on."""
    return row["machine"]["processor"], row["machine"]["threads"]


def sqnr(row: Row) -> float:
    """SQNR in dB; minus infinity if there is none."""
    value = row.get("sqnr_db")
    return -math.inf if row["error"] or value is None else value


def _short(row: Row) -> list[str]:
    return [row["configuration"], f"{sqnr(row):.2f}", f"{row['agreement_pct'][0]:.2f} %", _layers(row)]


def _layers(row: Row) -> str:
    graph = row["graph"]
    return f"{graph['layers_quantized']}/{graph['layers']}" if "layers" in graph else "-"


def _cells(row: Row, usual: tuple[str, int] | None) -> list[str]:
    took = [f"{row['wall_s']:.0f}", f"{row['cpu_s']:.0f}", f"{row['peak_mib']:,}"]
    if usual is not None and place(row) != usual:
        took = [f"({value})" for value in took]
    head = [row["peer"], row["configuration"], str(row["images"])]
    if row["error"]:
        error = row["error"].replace("|", "\\|")
        return [*head, "-", "-", "-", f"failed: {error}", "-", *took]
    agreement = "{:.2f} ({:.2f} to {:.2f})".format(*row["agreement_pct"])
    loss = "{:+.2f} ({:+.2f} to {:+.2f})".format(*row["top1_loss_pp"]) if "top1_loss_pp" in row else "-"
    return [*head, row["graph"]["rules"], _layers(row), f"{sqnr(row):.2f}", agreement, loss, *took]
