"""Wall time of ``quantlab --help`` against that of an empty Python process, interleaved."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 20
BUDGET_MS = 150.0


def _time_ms(command: list[str], folder: str) -> float:
    start = time.perf_counter_ns()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter_ns() - start) / 1e6


def main() -> None:
    """Print both medians, their ratio and the budget."""
    script = Path(sys.executable).with_name("quantlab")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "quantlab --help": [str(script), "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for command in commands.values():
            _time_ms(command, folder)
        for _ in range(RUNS):
            for name, command in commands.items():
                times[name].append(_time_ms(command, folder))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:<16} {median:7.1f} ms   (median of {RUNS}, fastest {min(times[name]):.1f} ms)")
    floor, measured = medians.values()
    print(f"ratio            {measured / floor:7.1f} x    budget {BUDGET_MS:g} ms")


if __name__ == "__main__":
    main()
