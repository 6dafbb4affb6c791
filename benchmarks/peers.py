r"""quantlab and its peers: the same FP32 models, the same images, the same judge.

    python benchmarks/peers.py --work build/peers --list
    python benchmarks/peers.py --work build/peers --efficientnet build/el0/efficientnet-lite0.onnx \
        --photos build/photos1500 -o benchmarks/peers_result.json --markdown peers.md
    python benchmarks/peers.py --work build/peers --only 'fashion-mobilenet/quark/*' -o benchmarks/peers_result.json

Each peer is installed in a virtual environment of its own below the work folder; versions are read back from there.
Every configuration runs in a process of its own, with two threads and limits on time and memory; its seconds are those
of the whole process, from start to the written model, imports included and image decoding excluded. Finished ones are
in the result file at once, and skipped next time unless ``--force``. One that fails stays there with its error.

``--photos`` is what ``natural_photos.py`` makes, ``--fashion`` the folder of Debian's ``dataset-fashion-mnist``.
``--add`` takes over the rows of other result files, those of another machine too: each row says where it was taken.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from peers.configurations import CONFIGURATIONS, ENVIRONMENTS, Configuration
from peers.material import Facts, Source, prepare_material
from peers.tables import best_rows, every_row, sqnr
from peers.watched_process import Limits, Outcome, last_line, run_watched

from quantlab.datasets import SAMPLE_MODELS, sample_data, sample_model
from quantlab.files import write_text
from quantlab.harness.environment import available_cpus, package_versions, processor_name

SCRIPTS = Path(__file__).resolve().parent / "peers"
EFFICIENTNET = "efficientnet-lite0"
SEED = 0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

ITERATIONS = ("num_iterations", "adaround")  # what Quark and AIMET call them

PACKAGES = (
    "quantlab", "onnxruntime", "nvidia-modelopt", "nncf", "openvino", "amd-quark", "aimet-onnx", "onnx", "torch",
    "numpy",
)  # fmt: skip
"""Whose versions a row states, where they are installed."""

Row = dict[str, Any]


def sources(options: argparse.Namespace) -> list[Source]:
    """The models that can be run with what the command line names."""
    found = []
    if options.efficientnet:
        if options.photos is None:
            raise SystemExit("--efficientnet needs --photos, the folder of natural_photos.py")
        photos = [str(options.photos / name) for name in ("calibration", "evaluation")]
        found.append(
            Source(
                EFFICIENTNET, options.efficientnet, *photos, options.few, options.images, options.evaluated,
                "efficientnet-lite",
            )
        )  # fmt: skip
    tests = options.fashion / "t10k-images-idx3-ubyte.gz"
    evaluation = tests if tests.is_file() else sample_data("evaluation")
    found += [
        Source(
            name, sample_model(name), str(sample_data("calibration")), str(evaluation), options.few, options.images,
            options.evaluated,
        )
        for name in SAMPLE_MODELS
    ]  # fmt: skip
    return found


def environment_of(peer: str, work: Path) -> tuple[Path, dict[str, str]]:
    """Python of a peer's virtual environment, made if it is not there, and the versions that are installed in it."""
    if peer == "quantlab":
        return Path(sys.executable), package_versions()
    folder = work / "venvs" / peer
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        print(f"making the environment of {peer}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[peer]]
        done = subprocess.run(install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{peer} cannot be installed:\n{done.stdout[-2000:]}")
        (folder / "complete").touch()
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return python, {package["name"]: package["version"] for package in json.loads(listed.stdout)}


def variables(python: Path, threads: int) -> dict[str, str]:
    """Environment variables of a run: the caller's, with threads and seeds set, and no GPU."""
    own = {name: str(threads) for name in THREAD_VARIABLES}
    own |= {"PYTHONHASHSEED": str(SEED), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    own |= {"PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}", "NNCF_TELEMETRY": "0"}
    return {**os.environ, **own}


@cache
def offers_recovery() -> bool:
    """Whether the installed quantlab has ``--recover``; an earlier one is compared as it is, without."""
    command = [sys.executable, "-m", "quantlab", "calibrate", "--help"]
    return "--recover" in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def command_of(one: Configuration, python: Path, material: Path, facts: Facts, out: Path, threads: int) -> list[str]:
    """The command that quantizes, and the file that it writes, last."""
    images = material / f"{one.images}.npy"
    if one.peer == "quantlab":
        settings = one.settings if offers_recovery() else {k: v for k, v in one.settings.items() if k != "recover"}
        arguments = [value for name, text in settings.items() for value in (f"--{name}", str(text))]
        return [
            str(python), "-m", "quantlab", "calibrate", "--model", str(material / "model.onnx"), "--data", str(images),
            "--threads", str(threads), "--seed", str(SEED), *arguments, "-o", str(out / "quantlab"), "--quiet",
        ]  # fmt: skip
    job = {
        "model": str(material / "model.onnx"), "single": str(material / "single.onnx"), "images": str(images),
        "input": facts.input, "out": str(written(one, out)), "settings": one.settings, "threads": threads, "seed": SEED,
    }  # fmt: skip
    (out / "job.json").write_text(json.dumps(job, indent=1), "utf-8")
    return [str(python), str(SCRIPTS / f"run_{one.peer}.py"), str(out / "job.json")]


def written(one: Configuration, out: Path) -> Path:
    """The model that a configuration writes."""
    if one.peer == "quantlab":
        return out / "quantlab" / "model.qdq.onnx"
    return out / ("int8.xml" if one.settings.get("backend") == "openvino" else "int8.onnx")


def capped(settings: dict[str, Any], iterations: int | None) -> dict[str, Any]:
    """Settings with at most so many iterations of learned rounding."""
    if iterations is None:
        return settings
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found[name] = capped(value, iterations)
        else:
            found[name] = min(value, iterations) if name in ITERATIONS else value
    return found


def run_one(one: Configuration, python: Path, material: Path, facts: Facts, options: argparse.Namespace) -> Row:
    """Quantize, then judge; both as processes, so that neither can take this one down."""
    out = options.work / "out" / material.name / one.peer / one.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = command_of(one, python, material, facts, out, options.threads)
    load = os.getloadavg()[0]
    limits = Limits(60 * options.minutes, 1024 * options.gib, options.threads)
    took = run_watched(command, out / "log.txt", limits, variables(python, options.threads))
    model, error, judged = written(one, out), took.error, {}
    if error is None and not model.is_file():
        error = f"it wrote no model; its last words: {last_line(out / 'log.txt')}"
    if error is None:
        result = out / "evaluation.json"
        judge = [sys.executable, SCRIPTS / "evaluation.py", model, material, options.threads, result]
        judging = run_watched(
            [str(part) for part in judge],
            out / "evaluation.txt",
            limits,
            variables(Path(sys.executable), options.threads),
        )
        error = judging.error and f"evaluation: {judging.error}"
        judged = json.loads(result.read_text("utf-8")) if error is None else {}
    return {**identity(one, facts), **_measured(took), "load_before": round(load, 2), "error": error, **judged}


def identity(one: Configuration, facts: Facts) -> Row:
    """What makes a finished row the same as one that is to be run."""
    return {
        "peer": one.peer, "configuration": one.name, "images": facts.calibration[one.images],
        "evaluated": facts.evaluation, "model_sha256": facts.sha256, "settings": one.settings,
    }  # fmt: skip


def _measured(took: Outcome) -> Row:
    return {"wall_s": round(took.wall_s, 2), "cpu_s": round(took.cpu_s, 2), "peak_mib": round(took.peak_mib)}


def machine(threads: int) -> Row:
    """Where and when a row is taken."""
    return {
        "processor": processor_name(), "cpus": available_cpus(), "threads": threads, "system": platform.system(),
        "python": platform.python_version(), "date": dt.date.today().isoformat(),
    }  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The results so far; read anew each time, so that several of these may run at once."""
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found
    return {"rows": []}


def with_row(document: dict[str, Any], row: Row) -> dict[str, Any]:
    """The results with a row in the place of an earlier one of the same name."""
    names = ("model", "peer", "configuration")
    others = [old for old in document["rows"] if any(old[name] != row[name] for name in names)]
    return {**document, "rows": [*others, row]}


def save(path: Path, document: dict[str, Any]) -> None:
    """Write the results, whole or not at all."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="environments, images, models, logs")
    parser.add_argument("--efficientnet", type=Path, metavar="FILE", help="what efficientnet_lite0.py writes")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="with calibration/ and evaluation/")
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--few", type=int, default=64, help="calibration images for learned rounding")
    parser.add_argument("--images", type=int, default=512, help="calibration images for the rest")
    parser.add_argument("--evaluated", type=int, help="evaluation images at most; default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=30.0, help="limit of a configuration")
    parser.add_argument("--gib", type=float, default=16.0, help="limit of a configuration's memory")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="MODEL/PEER/CONFIGURATION")
    parser.add_argument("--list", action="store_true", help="name the configurations and end")
    parser.add_argument("--retry", action="store_true", help="run failed ones again")
    parser.add_argument("--iterations", type=int, help="of learned rounding at most, for a quick try")
    parser.add_argument("--force", action="store_true", help="run finished ones again")
    parser.add_argument("-o", "--output", type=Path, help="JSON of results; default peers.json in the work folder")
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="FILE", help="take over rows, and end")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running configuration is ended too
    wanted = [
        (source, replace(one, settings=capped(one.settings, options.iterations)))
        for source in sources(options)
        for one in CONFIGURATIONS
        if source.name.startswith(one.models)
        and (one.settings.get("recover", "none") == "none" or offers_recovery())
        and any(fnmatch(f"{source.name}/{one.key}", pattern) for pattern in options.only)
    ]
    if options.list:
        print("\n".join(f"{source.name}/{one.key}" for source, one in wanted))
        return
    output = options.output or options.work / "peers.json"
    for file in options.add:
        if not file.is_file():
            raise SystemExit(f"{file} is not there")
        for row in read(file)["rows"]:
            save(output, with_row(read(output), row))
    if options.add:
        wanted = []
    versions: dict[str, dict[str, str]] = {}
    pythons: dict[str, Path] = {}
    for number, (source, one) in enumerate(wanted, 1):
        label = f"{number}/{len(wanted)} {source.name}/{one.key}"
        material = options.work / "material" / source.name
        facts = prepare_material(source, material, options.threads)
        key = {"model": source.name, **identity(one, facts)}
        same = [row for row in read(output)["rows"] if all(row.get(name) == value for name, value in key.items())]
        if same and not (options.force or (options.retry and same[0]["error"])):
            print(f"{label}: done before", flush=True)
            continue
        if one.peer not in pythons:
            pythons[one.peer], versions[one.peer] = environment_of(one.peer, options.work)
        shown = {name: versions[one.peer][name] for name in PACKAGES if name in versions[one.peer]}
        taken = {"machine": machine(options.threads), "versions": shown}
        row = {"model": source.name, **run_one(one, pythons[one.peer], material, facts, options), **taken}
        save(output, with_row(read(output), row))
        words = row["error"] or f"{sqnr(row):.2f} dB, {row['agreement_pct'][0]:.2f} %, {row['graph']['rules']}"
        print(f"{label}: {words}; {row['wall_s']:.1f} s, {row['peak_mib']:,} MiB", flush=True)
    rows = read(output)["rows"]
    text = f"# The best of each\n\n{best_rows(rows)}\n# Every row\n\n{every_row(rows)}"
    if options.markdown:
        write_text(options.markdown, text)
    print(text)


if __name__ == "__main__":
    main()
