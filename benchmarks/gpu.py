"""Every precision of a model on a GPU: what was proved, drift against ONNX Runtime FP32 on the CPU, device times.

    python benchmarks/gpu.py --model net.onnx --table calibration/calibration.json --data val/ -o result.json

Builds variants for TensorRT-RTX (or TensorRT) and for ONNX Runtime's CUDA provider, runs all of them on the same
samples, and times each by itself: TensorRT with CUDA events by trtexec's definitions, in the mode of trtexec 10
(transfers, no graph) and of trtexec 11 (CUDA graph, no transfers); ONNX Runtime by the host's clock, with inputs and
outputs on the GPU. What cannot be built or run is in the result by name, with the reason.

    python benchmarks/gpu.py --render result.json ... > docs/gpu-results.md
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantlab.calibrators import CalibrationTable
from quantlab.datasets import batches
from quantlab.documents import dump_json
from quantlab.engines.protocol import Engine
from quantlab.engines.record import Profile
from quantlab.engines.tensorrt.options import BuildOptions
from quantlab.engines.variant import Variant
from quantlab.errors import QuantlabError
from quantlab.files import write_text
from quantlab.graph.targets import TARGETS
from quantlab.harness.compare import CompareSettings, compare
from quantlab.harness.comparison import VariantResult
from quantlab.harness.environment import environment
from quantlab.harness.trtexec import device_figures
from quantlab.precision import Precision
from quantlab.progress import Narrator, Silent
from quantlab.records import to_plain
from quantlab.workflow.build import build_variants, builder_for
from quantlab.workflow.sources import DataRequest, open_data, open_model

SCHEMA = "quantlab.gpu-results/1"
BATCHES_DISAGREE = "samples give other results than one by one"
PRECISIONS = {
    "onnxruntime": ("fp32",),
    "tensorrt": ("fp32", "tf32", "fp16", "bf16", "int8", "int8-fp16", "fp8"),
    "tensorrt-rtx": ("fp32", "tf32", "fp16", "bf16", "int8", "int8-fp16", "fp8"),
    "onnxruntime-cuda": ("fp32", "tf32", "fp16", "bf16", "int8", "fp8"),
}
BATCHES = (1, 32)
MODES = {"trtexec 10": {"use_graph": False, "transfers": True}, "trtexec 11": {"use_graph": True, "transfers": False}}


class Terse(Silent):
    """Narration to stderr."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Build, compare and time; the result document."""
    narrator: Narrator = Terse()
    prepared = open_model(options.model, {}, narrator)
    table = CalibrationTable.load(options.table)
    (spec,) = prepared.model.proto.graph.input
    dims = tuple(dim.dim_value for dim in spec.type.tensor_type.shape.dim)[1:]
    largest = Profile((1, *dims), (options.optimum, *dims), (max(BATCHES), *dims))
    skipped: dict[str, str] = {}
    engines: dict[str, Engine] = {}
    facts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("onnxruntime", *options.backends.split(",")):
            flavour = backend in ("tensorrt", "tensorrt-rtx")
            build = BuildOptions(profiles=({spec.name: largest},)) if flavour else None
            wanted = [
                (name, tuple(options.exclude) if name.startswith("int8") and flavour else ())
                for name in PRECISIONS[backend]
            ]
            wanted += [(name, (pattern,)) for name, _, pattern in options.also if flavour]
            for precision, excluded in wanted:
                name = f"{backend}-{precision}" + "".join(f" without {pattern}" for pattern in excluded)
                try:
                    variant = Variant(prepared, backend, Precision(precision), TARGETS["tensorrt"], table, excluded)
                    start = time.perf_counter()
                    (sidecar,) = build_variants([variant], Path(folder), narrator, build)
                    build_s = time.perf_counter() - start
                    start = time.perf_counter()
                    engine = builder_for(backend).load(Path(folder) / sidecar.file, 0)
                    facts[sidecar.name] = {"build_s": build_s, "load_s": time.perf_counter() - start}
                    engines[sidecar.name] = engine
                except QuantlabError as error:
                    skipped[name] = " ".join(str(error).split())[:600]
                    narrator.say(f"skipped {name}: {skipped[name]}")
        dataset, _ = open_data(prepared.model, DataRequest(str(options.data), limit=options.limit), narrator)
        settings = CompareSettings(batch_size=max(BATCHES), latency=None)
        comparison = compare(list(engines.values()), "onnxruntime-fp32", dataset, settings, narrator)
        first = next(iter(batches(dataset, max(BATCHES)))).inputs
        rows = [row(result, engines[result.name], facts[result.name], first) for result in comparison.variants]
        layers = {name: list(e.sidecar.engine.layers) for name, e in engines.items() if e.sidecar.engine is not None}
        degradations = {name: [str(d) for d in e.sidecar.degradations] for name, e in engines.items()}
    return {
        "schema": SCHEMA,
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "model": comparison.model,
        "model_sha256": comparison.model_sha256,
        "table_sha256": table.sha256,
        "data": comparison.data,
        "n_samples": comparison.n_samples,
        "batches": list(BATCHES),
        "optimum_batch": options.optimum,
        "environment": environment(0),
        "variants": rows,
        "layers": layers,
        "degradations": degradations,
        "skipped": skipped,
    }


def row(result: VariantResult, engine: Engine, facts: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """One variant: drift, proof and times."""
    plain: dict[str, Any] = to_plain(result)
    plain |= facts
    plain["times"] = {}
    if hasattr(engine, "time_device"):
        plain["batch_check"] = batch_check(engine, inputs)
    for size in BATCHES:
        feed = {name: np.ascontiguousarray(values[:size]) for name, values in inputs.items()}
        if hasattr(engine, "time_device"):
            for mode, settings in MODES.items():
                figures = device_figures(engine.time_device(feed, seconds=0.4, **settings))
                plain["times"][f"{mode}, batch {size}"] = to_plain(figures)
        elif hasattr(engine, "device_call"):
            plain["times"][f"host clock, batch {size}"] = host_times(engine.device_call(feed))
    if hasattr(engine, "profile"):
        plain["profile_ms"] = engine.profile(inputs, runs=5)
    return plain


def batch_check(engine: Engine, inputs: Any) -> dict[str, Any]:
    """Of the engine that was compared: whether a batch repeats, and how far it is from its samples one by one."""
    n = len(next(iter(inputs.values())))
    whole, again = engine.run(inputs), engine.run(inputs)
    single = [
        engine.run({name: np.ascontiguousarray(values[i : i + 1]) for name, values in inputs.items()}) for i in range(n)
    ]
    found: dict[str, Any] = {"repeats": all(np.array_equal(whole[name], again[name]) for name in whole)}
    for name, values in whole.items():
        ones = np.concatenate([outputs[name] for outputs in single]).astype(np.float64)
        difference = np.linalg.norm(values.astype(np.float64) - ones)
        found[name] = float(difference / max(float(np.linalg.norm(ones)), 1e-300))
    return found


def host_times(call: Any, seconds: float = 0.5, least: int = 20) -> dict[str, float]:
    """Median and 99th percentile of calls, in milliseconds, without the first, which may search for kernels."""
    call()
    times: list[int] = []
    start = time.perf_counter_ns()
    while time.perf_counter_ns() - start < (seconds + 0.2) * 1e9 or len(times) < least:
        before = time.perf_counter_ns()
        call()
        if before - start > 0.2e9:
            times.append(time.perf_counter_ns() - before)
    values = np.array(times) / 1e6
    return {"calls": len(times), "median_ms": float(np.median(values)), "p99_ms": float(np.quantile(values, 0.99))}


def render(documents: list[dict[str, Any]]) -> str:
    """Markdown tables of result documents."""
    lines: list[str] = []
    for document in documents:
        lines += [f"## {document['model']}", ""]
        classified = any(variant["classification"]["n_labelled"] for variant in document["variants"])
        accuracy = " top-1 % |" if classified else ""
        lines.append(f"| variant | proved | SQNR dB | agreement % |{accuracy} batch 1, ms | batch 32, ms | build s |")
        lines.append("| --- | --- | --- | --- |" + (" --- |" if classified else "") + " --- | --- | --- |")
        for variant in document["variants"]:
            drift, votes = variant["outputs"][0], variant["classification"]
            sqnr = drift["sqnr_db"]
            cells = [
                variant["name"],
                variant["proved"] or "nothing",
                sqnr if isinstance(sqnr, str) else f"{sqnr:.1f}",
                f"{100 * votes['agreement'] / votes['n']:.2f}",
            ]
            if classified:
                cells.append(f"{100 * votes['top1'] / votes['n_labelled']:.2f}")
            cells += [milliseconds(variant["times"], size) for size in document["batches"]]
            cells.append(f"{variant['build_s']:.1f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        for name, reason in document["skipped"].items():
            lines.append(f"- `{name}` was not built. {sentence(reason)}")
        told = [text for texts in document["degradations"].values() for text in texts if BATCHES_DISAGREE in text]
        lines += [f"- {text}." for text in told]
        lines += [""] if document["skipped"] or told else []
    return "\n".join(lines)


def sentence(reason: str) -> str:
    """What to do about a refusal, or else the refusal."""
    text = reason.rpartition(" try: ")[2]
    return f"{text[:1].upper()}{text[1:]}."


def milliseconds(times: dict[str, Any], size: int) -> str:
    """Median compute times: those of both modes of trtexec, or that of the host's clock."""
    found = [times.get(f"{mode}, batch {size}") for mode in MODES]
    if all(figures is not None for figures in found):
        return " / ".join(f"{figures['compute']['median_ms']:.3f}" for figures in found if figures)
    host = times.get(f"host clock, batch {size}")
    return f"{host['median_ms']:.3f}" if host else "-"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--backends", default="tensorrt-rtx,onnxruntime-cuda")
    parser.add_argument("--exclude", action="append", default=[], help="layer that TensorRT's INT8 leaves out")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        type=lambda text: text.partition(":"),
        metavar="PRECISION:LAYER",
        help="one more variant of TensorRT, without a layer",
    )
    parser.add_argument("--optimum", type=int, default=32, help="batch that kernels are chosen for")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--render", type=Path, nargs="+", help="result files to show as Markdown")
    options = parser.parse_args()
    if options.render:
        print(render([json.loads(path.read_text(encoding="utf-8")) for path in options.render]))
        return
    write_text(options.out, dump_json(measure(options)))


if __name__ == "__main__":
    main()
