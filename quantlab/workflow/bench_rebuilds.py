"""Building the same variants again and again, and timing the builds against each other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from quantlab.calibrators.table import CalibrationTable
from quantlab.engines.protocol import Engine
from quantlab.engines.sidecar import Sidecar, read_sidecar
from quantlab.engines.tensorrt.flavour import FLAVOURS
from quantlab.engines.tensorrt.options import BuildOptions
from quantlab.engines.tensorrt.profiles import ShapeFlags
from quantlab.engines.variant import RecoveredModel, Variant
from quantlab.errors import ConfigError, EngineMismatch
from quantlab.graph.existing import ExistingPolicy
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import TARGETS
from quantlab.harness.latency import LatencySettings
from quantlab.harness.rebuilds import Rebuilds, built, rebuilds
from quantlab.harness.sweep import time_against_each_other
from quantlab.progress import Narrator, Silent
from quantlab.workflow.bench_engines import BenchInputs, open_timed
from quantlab.workflow.build import build_variants
from quantlab.workflow.recovery import find_recovery
from quantlab.workflow.sources import find_model, open_for_engine, open_model


@dataclass(frozen=True, slots=True)
class RebuildRequest:
    """What to build again.

    Attributes:
        count: Builds of each engine.
        model: The FP32 model; None for the only one in the folder.
        table: Calibration table, for engines that were made with one.
        plugins: Libraries with operators of the user's own.
    """

    count: int
    model: Path | None = None
    table: Path | None = None
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Again:
    """How to build one engine again."""

    sidecar: Sidecar
    variant: Variant
    options: BuildOptions | None


def plan_rebuilds(sidecars: Sequence[Sidecar], request: RebuildRequest, narrator: Narrator) -> tuple[_Again, ...]:
    """Find out how each engine was built, before anything is measured.

    Raises:
        ConfigError: If an engine was built with options that its sidecar does not tell whole, or a table is missing.
        EngineMismatch: If model or table is another one.
        QuantlabError: If model or table cannot be read.
    """
    path = find_model(request.model, Path())
    table = CalibrationTable.load(request.table) if request.table is not None else None
    plans = []
    for sidecar in sidecars:
        options = _options(sidecar, request.plugins)
        if options is not None:
            prepared = open_for_engine(path, ShapeFlags(dict(sidecar.shapes), options.profiles), Silent())
        else:
            prepared = open_model(path, sidecar.shapes, Silent())
        for what, got, expected in (
            ("model", prepared.model.sha256, sidecar.model_sha256),
            ("prepared graph", prepared.graph_sha256, sidecar.graph_sha256),
        ):
            if got != expected:
                raise EngineMismatch(
                    f"{sidecar.name} was built from another {what} than {path.name}",
                    got=f"sha256 {got[:16]}...",
                    expected=f"sha256 {expected[:16]}...",
                    hint="pass the model that the engines were built from with --model",
                )
        if sidecar.table_sha256 is not None and table is None:
            hint = "pass the calibration table with --table"
            raise ConfigError(f"{sidecar.name} was built with a calibration table", hint=hint)
        used = table.with_method(sidecar.method) if table is not None and sidecar.method is not None else table
        existing = ExistingPolicy.REFUSE
        if sidecar.kept:
            existing = ExistingPolicy.KEEP if sidecar.table_sha256 is None else ExistingPolicy.COMPLETE
        target = TARGETS[sidecar.target] if sidecar.target in TARGETS else TARGETS["tensorrt"]
        recovery = _recovery(sidecar, request, table, prepared)
        variant = Variant(
            prepared, sidecar.backend, sidecar.requested, target, used, sidecar.excluded, existing, recovery
        )
        plans.append(_Again(sidecar, variant, options))
    narrator.say(f"to be built {request.count} times each: {', '.join(sidecar.name for sidecar in sidecars)}")
    return tuple(plans)


def _recovery(
    sidecar: Sidecar, request: RebuildRequest, table: CalibrationTable | None, prepared: Prepared
) -> RecoveredModel | None:
    """The recovered model that an engine was built from.

    Raises:
        EngineMismatch: If it is not the one that lies beside the table.
    """
    if sidecar.recovery is None or request.table is None or table is None:
        return None
    found = find_recovery(request.table, table, prepared, Silent())
    if found is None or found.sha256 != sidecar.recovery.sha256:
        raise EngineMismatch(
            f"{sidecar.name} was built from a recovered model that does not lie beside {request.table}",
            got=f"sha256 {found.sha256[:16]}..." if found is not None else "none",
            expected=f"sha256 {sidecar.recovery.sha256[:16]}...",
            hint="pass the table of the calibration that the engine was built with",
        )
    return found


def _options(sidecar: Sidecar, plugins: tuple[Path, ...]) -> BuildOptions | None:
    if sidecar.backend not in FLAVOURS:
        return None
    record = sidecar.engine
    told = dict(record.options) if record is not None else {}
    told.pop("plugin", None)
    if told:
        raise ConfigError(
            f"{sidecar.name} was built with options that cannot be taken from its sidecar",
            got=", ".join(f"{name} {value}" for name, value in told.items()),
            expected="an engine built with the default options",
            hint="build it again several times with quantlab build, into different folders, and measure each",
        )
    return BuildOptions(profiles=record.profiles if record is not None else (), plugins=plugins)


def time_rebuilds(
    plans: Sequence[_Again],
    request: RebuildRequest,
    reference: Path,
    inputs: BenchInputs,
    batch_size: int,
    threads: int,
    settings: LatencySettings,
    narrator: Narrator,
) -> tuple[Rebuilds, ...]:
    """Build, and time all builds of one variant and the reference engine in one set of interleaved rounds.

    Raises:
        EngineBuildError: If a graph is refused.
        MeasurementError: If an engine fails.
    """
    found = []
    for plan in plans:
        with tempfile.TemporaryDirectory(prefix="quantlab-rebuilds-") as folder, ExitStack() as stack:
            paths, seconds = _build(plan, request.count, Path(folder), narrator)
            chosen, _ = stack.enter_context(open_timed([reference], threads, 1, (), narrator))
            base = chosen[0].sidecar.name
            plugins = request.plugins if plan.sidecar.backend in FLAVOURS else ()
            engines: dict[str, Engine] = {base: chosen[0]}
            hashes = []
            for number, path in enumerate(paths):
                opened, _ = stack.enter_context(open_timed([path], threads, 1, plugins, narrator))
                engines[f"build {number + 1}"] = opened[0]
                hashes.append(opened[0].sidecar.sha256)
            narrator.say(f"timing {len(paths)} builds of {plan.sidecar.name} for about {settings.seconds:g} s")
            timings = time_against_each_other(engines, base, inputs.batch(batch_size), batch_size, settings)
            builds = [
                built(sha256, spent, timings.latencies[f"build {number + 1}"])
                for number, (sha256, spent) in enumerate(zip(hashes, seconds, strict=True))
            ]
            found.append(rebuilds(plan.sidecar.name, builds))
    return tuple(found)


def _build(plan: _Again, count: int, folder: Path, narrator: Narrator) -> tuple[list[Path], list[float]]:
    paths, seconds = [], []
    for number in range(count):
        place = folder / str(number)
        start = time.perf_counter_ns()
        (sidecar,) = build_variants([plan.variant], place, Silent(), plan.options)
        seconds.append((time.perf_counter_ns() - start) / 1e9)
        paths.append(place / sidecar.file)
        read_sidecar(paths[-1])
        narrator.say(f"built  {sidecar.name}, {number + 1} of {count}, in {seconds[-1]:.1f} s")
    return paths, seconds
