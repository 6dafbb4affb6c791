r"""Whether the latency harness can be believed on a noisy machine, beside a naive timing loop.

    python benchmarks/harness.py                                    # all of it, 15 to 20 minutes
    python benchmarks/harness.py --comparisons 60 --slowdowns 4     # a look
    python benchmarks/harness.py -o harness.json

A second process multiplies matrices all the while; nothing else should run. Interrupted, it ends at once and writes
nothing: the file of ``-o`` is whole or absent. Three things are measured, the naive loop right beside each:

- A/A: an engine against itself. The share of 95 % intervals that exclude 1.0 should be 5 %.
- 2 % more work: 51 products of small matrices against 50 in one call. Found if the interval lies above 1.0 with a
  half-width of at most 1 %, within 60 s.
- The naive loop: 100 runs of the one, then 100 of the other; ratio of the means, with Welch's t interval of the
  logarithm and with a bootstrap interval over the runs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from threadpoolctl import threadpool_limits

from quantlab.datasets import sample_model
from quantlab.files import write_text
from quantlab.graph.model import load_model, open_session
from quantlab.harness.latency import LatencySettings, time_engines
from quantlab.statistics.interval import Interval
from quantlab.statistics.ratio import half_width

RUNS, EXTRA = 50, 1
NAIVE_RUNS = 100
WANTED_HALF_WIDTH, WANTED_SECONDS, WANTED_EXCLUDED = 0.01, 60.0, 0.07

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Found:
    """One comparison.

    Attributes:
        method: Ours, or one of the naive ones.
        truth: Ratio of the work.
        ratio: Measured.
        low: Lower bound of 95 %.
        high: Upper bound.
        seconds: Wall time, warm-up included.
        words: What the harness said, if it did.
    """

    method: str
    truth: float
    ratio: float
    low: float
    high: float
    seconds: float
    words: str = ""

    @property
    def excludes_one(self) -> bool:
        return self.low > 1.0 or self.high < 1.0

    @property
    def holds_truth(self) -> bool:
        return self.low <= self.truth <= self.high

    @property
    def half_width(self) -> float:
        return half_width(Interval(self.low, self.high, 0.95))


def _multiply(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process, and says so once
    matrix = np.random.default_rng(0).random((300, 300))
    while os.getppid() == parent:  # it may have been killed
        matrix = matrix @ matrix
        matrix /= matrix.max()


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that keep a core busy each."""
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # inherited: one core each
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_multiply, args=(os.getpid(),), daemon=True) for _ in range(processes)]
    for child in children:
        child.start()
    time.sleep(2.0)
    try:
        yield
    finally:
        for child in children:
            child.terminate()
            child.join()


def engine_call(model: str, threads: int) -> Call:
    """One run of a bundled model in ONNX Runtime."""
    session = open_session(load_model(sample_model(model)), threads=threads)
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    feed = {entry.name: np.random.default_rng(0).random(shape, np.float32)}
    return lambda: session.run(None, feed)


def products(times: Sequence[int]) -> list[Call]:
    """Calls of that many products of matrices of 64 rows, about a millisecond for 50; all in the same memory."""
    matrix = np.random.default_rng(0).random((64, 64), np.float32)
    result = np.empty_like(matrix)

    def call_of(count: int) -> Call:
        def run() -> None:
            for _ in range(count):
                np.matmul(matrix, matrix, out=result)

        return run

    return [call_of(count) for count in times]


def ours(a: Call, b: Call, truth: float, settings: LatencySettings) -> list[Found]:
    """The comparison, and the control as one more of a thing with itself."""
    start = time.perf_counter()
    timings = time_engines({"a": a, "b": b}, "a", 1, settings)
    took = time.perf_counter() - start
    latency, floor = timings.latencies["b"], timings.noise_floor
    words = f"{latency.change}, stopped for {timings.stop}" + (", too noisy" if timings.too_noisy else "")
    return [
        Found("quantlab", truth, latency.ratio, latency.ratio_interval.low, latency.ratio_interval.high, took, words),
        Found("quantlab control", 1.0, timings.control_ratio, floor.low, floor.high, took),
    ]


def naive(a: Call, b: Call, truth: float, seed: int) -> list[Found]:
    """Mean of 100 runs each, one after the other, by two intervals."""
    start = time.perf_counter()
    first, second = _durations(a), _durations(b)
    took = time.perf_counter() - start
    ratio = float(np.mean(second) / np.mean(first))
    errors = [float(np.std(values, ddof=1) / np.mean(values) / math.sqrt(len(values))) for values in (first, second)]
    error = math.hypot(*errors)
    freedom = error**4 / sum(value**4 / (NAIVE_RUNS - 1) for value in errors)
    half = float(stats.t.ppf(0.975, freedom)) * error
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, NAIVE_RUNS, (2, 1000, NAIVE_RUNS))
    ratios = second[picks[1]].mean(axis=1) / first[picks[0]].mean(axis=1)
    low, high = (float(value) for value in np.quantile(ratios, [0.025, 0.975]))
    return [
        Found("naive, t", truth, ratio, ratio * math.exp(-half), ratio * math.exp(half), took),
        Found("naive, bootstrap", truth, ratio, low, high, took),
    ]


def _durations(call: Call) -> NDArray[np.float64]:
    values = []
    for _ in range(NAIVE_RUNS):
        start = time.perf_counter_ns()
        call()
        values.append(time.perf_counter_ns() - start)
    return np.array(values, np.float64)


def same(call: Call, comparisons: int, seconds: float, seed: int) -> list[Found]:
    """A/A."""
    found: list[Found] = []
    start = time.perf_counter()
    for index in range(comparisons):
        one = LatencySettings(seconds=seconds, half_width=0.0, seed=seed + index)
        found += ours(call, call, 1.0, one)
        found += naive(call, call, 1.0, seed + index)
        if (index + 1) % 10 == 0:
            misses = sum(item.excludes_one for item in found if item.method == "quantlab")
            spent = time.perf_counter() - start
            left = spent / (index + 1) * (comparisons - index - 1)
            print(f"  {index + 1} of {comparisons} A/A, {misses} exclude 1, {left / 60:.1f} minutes left", flush=True)
    return found


def slower(repetitions: int, seed: int) -> list[Found]:
    """2 % more work."""
    a, b = products((RUNS, RUNS + EXTRA))
    truth = (RUNS + EXTRA) / RUNS
    found = []
    for index in range(repetitions):
        settings = LatencySettings(seconds=WANTED_SECONDS - 5.0, half_width=0.8 * WANTED_HALF_WIDTH, seed=seed + index)
        found += ours(a, b, truth, settings)
        found += naive(a, b, truth, seed + index)
        one = found[-4]
        print(
            f"  {index + 1}: {one.ratio:.4f} ({one.low:.4f} to {one.high:.4f}) in {one.seconds:.1f} s: {one.words}",
            flush=True,
        )
    return found


def table(title: str, found: Sequence[Found]) -> list[str]:
    """One row for each method."""
    lines = [title, f"  {'method':<18}{'n':>5}{'excludes 1':>12}{'holds truth':>13}{'half-width %':>14}{'seconds':>9}"]
    for method in dict.fromkeys(item.method for item in found):
        rows = [item for item in found if item.method == method]
        excluded = 100 * np.mean([item.excludes_one for item in rows])
        held = 100 * np.mean([item.holds_truth for item in rows])
        widths = 100 * np.quantile([item.half_width for item in rows], [0.5, 1.0])
        seconds = np.median([item.seconds for item in rows])
        shares = f"{excluded:>10.1f} %{held:>11.1f} %"
        lines.append(f"  {method:<18}{len(rows):>5}{shares}{widths[0]:>7.2f}..{widths[1]:<5.2f}{seconds:>9.1f}")
    return [*lines, "  (half-width: median..largest)", ""]


def met(alike: Sequence[Found], more: Sequence[Found]) -> list[str]:
    """The claims, and whether they hold."""
    mine = [item for item in alike if item.method == "quantlab"]
    hits = [
        item.low > 1.0 and item.half_width <= WANTED_HALF_WIDTH and item.seconds <= WANTED_SECONDS
        for item in more
        if item.method == "quantlab"
    ]
    lines = []
    if mine:
        share = float(np.mean([item.excludes_one for item in mine]))
        verdict = "holds" if share <= WANTED_EXCLUDED else "FAILS"
        lines.append(f"A/A excludes 1.0 in {100 * share:.1f} % (at most {100 * WANTED_EXCLUDED:g} %): {verdict}")
    if hits:
        verdict = "holds" if all(hits) else "FAILS"
        lines.append(f"2 % more work found in {sum(hits)} of {len(hits)}, half-width <= 1 %, <= 60 s: {verdict}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200, help="A/A comparisons")
    parser.add_argument("--slowdowns", type=int, default=20, help="comparisons with 2 %% more work")
    parser.add_argument("--seconds", type=float, default=2.5, help="budget of an A/A comparison")
    parser.add_argument("--busy", type=int, default=1, help="busy processes beside")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine")
    parser.add_argument("--model", default="fashion-resnet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON of every comparison")
    options = parser.parse_args()
    if options.output and not options.output.parent.is_dir():
        parser.error(f"there is no folder {options.output.parent} to write to")
    start = time.perf_counter()
    call = engine_call(options.model, options.threads)
    with busy(options.busy), threadpool_limits(1):
        alike = same(call, options.comparisons, options.seconds, options.seed)
        more = slower(options.slowdowns, options.seed)
    took = time.perf_counter() - start
    claims = met(alike, more)
    lines = [*table("The same engine twice", alike), *table("2 % more work", more), *claims]
    print("\n".join(["", *lines, f"{took / 60:.1f} minutes in all"]))
    if options.output:
        facts = {"system": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg(), "seconds": took}
        chosen = {name: value for name, value in vars(options).items() if name != "output"}
        document = {
            "settings": chosen,
            "machine": facts,
            "same": _rows(alike),
            "more": _rows(more),
            "claims": claims,
        }
        write_text(options.output, json.dumps(document, indent=1) + "\n")


def _rows(found: Sequence[Found]) -> list[dict[str, object]]:
    return [asdict(item) for item in found]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; nothing was written") from None
