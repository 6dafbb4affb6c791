"""Recover: run the steps, judge each on samples that none of them learned from, and keep what gains."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantlab.calibrators.table import CalibrationTable, samples_sha256
from quantlab.datasets.dataset import SourceDataset
from quantlab.datasets.protocol import Dataset, Sample
from quantlab.degradation import Degradation, DegradationCode
from quantlab.documents import canonical_sha256, near_match
from quantlab.engines.output_noise import Probe, batches_of, float_outputs, make_probe
from quantlab.errors import CalibrationError, ConfigError
from quantlab.graph.checks import has_qdq
from quantlab.graph.model import open_session
from quantlab.graph.prepare import Prepared
from quantlab.graph.targets import TargetProfile
from quantlab.memory import release_memory
from quantlab.progress import Narrator
from quantlab.recovery.bias import Bias
from quantlab.recovery.diagnosis import activation_shares, diagnose
from quantlab.recovery.equalize import Equalize
from quantlab.recovery.judge import LIKELY, Judged, change_db, falls, noise_of
from quantlab.recovery.observations import Observed
from quantlab.recovery.protocol import Context, Proposal, State, Step
from quantlab.recovery.ranges import Ranges
from quantlab.recovery.record import Diagnosis, RecoveryRecord, StepRecord
from quantlab.recovery.resume import Resume
from quantlab.recovery.round import Round
from quantlab.recovery.shift import Shift, moved_grids
from quantlab.recovery.smooth import Smooth
from quantlab.recovery.spare import Spare

STEPS: tuple[Step, ...] = (Equalize(), Smooth(), Ranges(), Shift(), Spare(), Round(), Bias())
"""All steps, in the order in which they run."""

STEP_NAMES = tuple(step.name for step in STEPS)

SEARCH, CHECK = 128, 128
"""Samples at most: of those that steps learn from, to choose among a step's proposals; and held out, to judge."""

LEAST = 8
"""Samples below which nothing can be judged."""

MOST_FIT = 256
"""Samples at most that steps learn from."""

_FIT_BATCH, _FIT_BATCH_BYTES, _FIT_BYTES = 8, 5 << 18, 192 << 20
_PROBE_BYTES = 1 << 30
"""Memory for the inputs and outputs of the samples that judge, and of those that choose; fewer are taken if need be."""
_LITTLE = 0.02
"""Share of the whole noise below which steps for that kind of noise are not run by default."""
_WORTH_DB = 0.25
"""What a less cautious proposal must gain over one before it."""
_FOR_ACTIVATIONS = frozenset({"equalize", "smooth", "ranges", "shift", "spare"})


def parse_steps(text: str) -> tuple[str, ...]:
    """Steps of ``--recover``: ``default``, ``none``, or names with commas between, which run in their own order.

    Raises:
        ConfigError: If there is no such step.
    """
    if text == "default":
        return STEP_NAMES
    if text == "none":
        return ()
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STEP_NAMES:
            near = near_match(name, (*STEP_NAMES, "default", "none"))
            raise ConfigError(
                f"there is no recovery step {name!r}", expected=f"default, none, or some of {', '.join(STEP_NAMES)}",
                hint=f"did you mean {near!r}?" if near else None,
            )  # fmt: skip
    return tuple(name for name in STEP_NAMES if name in names)


@dataclass(frozen=True, slots=True)
class RecoverSettings:
    """How to recover.

    Attributes:
        steps: Names of the steps to run.
        target: Rules of the quantized graph.
        threads: Workers, at least 1.
        exclude: Names or patterns of layers that stay in floating point.
        folder: Where finished steps are kept, to go on from after an interruption; None to keep nothing.
    """

    steps: tuple[str, ...]
    target: TargetProfile
    threads: int
    exclude: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """What came of it.

    Attributes:
        state: The model with everything that was kept.
        record: What each step did.
        degradations: What could not be done.
        target: Name of the Q/DQ rules that it was made for; empty if not stated.
        table_sha256: Hash of the calibration table that it started from; empty if not stated.
        exclude: Names or patterns of the layers that stayed in floating point.
    """

    state: State
    record: RecoveryRecord
    degradations: tuple[Degradation, ...]
    target: str = ""
    table_sha256: str = ""
    exclude: tuple[str, ...] = ()


def recover(
    prepared: Prepared, dataset: Dataset, table: CalibrationTable, settings: RecoverSettings, narrator: Narrator
) -> Recovered:
    """Make up for what INT8 costs.

    The samples are split by their content's hash: a quarter, `CHECK` at most, judges; of the rest,
    `MOST_FIT` at most are learned from. So
    neither their order, nor their names, nor the batch size matter.

    Args:
        prepared: The graph that the table belongs to.
        dataset: Samples of the calibration.
        table: Its ranges.
        settings: How.
        narrator: Told of progress.

    Raises:
        ConfigError: If the model holds Q/DQ pairs already.
        CalibrationError: If the model fails on a sample, or has no floating-point output that noise can be measured at.
        EngineBuildError: If no layer can be quantized.
    """
    if has_qdq(prepared.model.proto):
        raise ConfigError(
            "a model that already holds QuantizeLinear or DequantizeLinear nodes cannot be recovered",
            expected="the floating-point model that it was made from", hint="leave out --recover",
        )  # fmt: skip
    state = State(prepared, table)
    entries = sorted({entry.sha256: entry.id for entry in dataset.manifest.entries}.items())
    steps = [step for step in STEPS if step.name in settings.steps]
    if len(entries) < LEAST or not steps:
        return _bound(_without_judge(state, steps, len(entries)), table, settings)
    held = [sample_id for number, (_, sample_id) in enumerate(entries) if number % 4 == 3][:CHECK]
    learned = [sample_id for _, sample_id in entries if sample_id not in set(held)]
    with ThreadPoolExecutor(settings.threads, thread_name_prefix="recover") as pool:
        judges, lessons = _load(dataset, held, learned[:MOST_FIT])
        probe_of = _Prober(prepared, pool)
        check, search = probe_of(judges), probe_of(lessons[:SEARCH])
        n_fit, batches = len(lessons), _fit_batches(lessons, prepared.fixed_batch)
        del judges, lessons  # what is needed of them is in the probes and the batches
        release_memory()
        resume = Resume(settings.folder, _key(prepared, dataset, table, settings))
        earlier = resume.steps(prepared)
        if earlier is None:
            diagnosis = diagnose(state, settings.target, settings.exclude, search, settings.threads, narrator)
            release_memory()
            records: tuple[StepRecord, ...] = ()
        else:
            (diagnosis, records), state = (earlier[0].diagnosis, earlier[0].records), earlier[1]
            done = ", ".join(record.name for record in records)
            narrator.say(f"recover goes on from an interrupted run, after {done}")
        narrator.say(_described(diagnosis))
        context = Context(
            settings.target,
            settings.exclude,
            _part(dataset, learned[:MOST_FIT]),
            batches,
            search,
            Observed(_part(dataset, learned[:MOST_FIT]), settings.threads),
            activation_shares(diagnosis),
            Shift.name in settings.steps,
            settings.threads,
            narrator,
            resume,
        )
        run = _Run(State(prepared, table), state, context, check, diagnosis, records, resume)
        return _bound(run.through(steps, n_fit, default=settings.steps == STEP_NAMES), table, settings)


def _bound(made: Recovered, table: CalibrationTable, settings: RecoverSettings) -> Recovered:
    """The same, saying what it was made for and from."""
    return replace(made, target=settings.target.name, table_sha256=table.sha256, exclude=settings.exclude)


def _key(prepared: Prepared, dataset: Dataset, table: CalibrationTable, settings: RecoverSettings) -> str:
    """Hash of all that the result depends on."""
    parts = {"graph": prepared.graph_sha256, "table": table.sha256, "target": settings.target.name}
    parts |= {"data": samples_sha256(entry.sha256 for entry in dataset.manifest.entries)}
    parts |= {"steps": "\n".join(settings.steps), "exclude": "\n".join(settings.exclude)}
    parts |= {"threads": str(settings.threads), "batches": f"{_FIT_BATCH} {_FIT_BATCH_BYTES}"}
    parts |= {package: version(package) for package in ("quantlab", "onnxruntime", "numpy")}
    return canonical_sha256(parts)


class _Prober:
    def __init__(self, prepared: Prepared, pool: ThreadPoolExecutor) -> None:
        self.prepared, self.pool = prepared, pool

    def __call__(self, samples: Sequence[Sample]) -> Probe:
        """A probe of these samples, or of as many as fit into `_PROBE_BYTES` with their outputs, `LEAST` at least."""
        most = max(LEAST, _PROBE_BYTES // max(1, self._bytes(samples[0])))
        return make_probe(self.prepared, samples[:most], pool=self.pool, what="--recover", hint="leave out --recover")

    def _bytes(self, sample: Sample) -> int:
        """What a probe keeps of a sample: its inputs, and its outputs in float64; of a fixed batch, so many of them."""
        session = open_session(self.prepared.model, threads=1, error=CalibrationError)
        (feed,), _ = batches_of([sample], self.prepared.fixed_batch)
        names = float_outputs(session)
        outputs = session.run(names, dict(feed)) if names else []
        return sum(value.nbytes for value in feed.values()) + 8 * sum(int(value.size) for value in outputs)


class _Run:
    """The steps on their way."""

    def __init__(
        self,
        start: State,
        state: State,
        context: Context,
        check: Probe,
        diagnosis: Diagnosis,
        records: tuple[StepRecord, ...],
        resume: Resume,
    ) -> None:
        self.start, self.state, self.context, self.check = start, state, context, check
        self.diagnosis, self.records, self.resume = diagnosis, records, resume

    def through(self, steps: Sequence[Step], n_fit: int, *, default: bool) -> Recovered:
        """Run all steps that were not finished before."""
        by_activations = _FOR_ACTIVATIONS if any(step.name == Round.name for step in steps) else frozenset()
        for step in steps[len(self.records) :]:
            reason = self._unneeded(step) if default else None
            by = Judged.ACTIVATIONS if step.name in by_activations else Judged.BOTH
            made = self._skipped(step, reason) if reason is not None else self._run(step, by)
            release_memory()
            self.records = (*self.records, made)
            self.resume.keep_step(self.diagnosis, self.records, self.state)
            self.context.narrator.say(described_step(made))
        return self._verdict(n_fit)

    def _verdict(self, n_fit: int) -> Recovered:
        """All of it against the start; the start itself, if all together does not gain."""
        start, end = (self._noise(state, self.check, Judged.BOTH) for state in (self.start, self.state))
        state, records, degradations = self.state, self.records, ()
        before, after = self.check.sqnr_db(start), self.check.sqnr_db(end)
        gained = after > before and falls(start, end, self.check.signal) > LIKELY
        if not gained and any(record.kept for record in records):
            note = f"undone: all steps together do not surely gain, {before:.2f} -> {after:.2f} dB"
            records = tuple(replace(r, kept=False, notes=(*r.notes, note)) if r.kept else r for r in records)
            state, after = self.start, before
        record = RecoveryRecord(records, n_fit, self.check.n, before, after, self.diagnosis)
        return Recovered(state, record, degradations)

    def _noise(self, state: State, probe: Probe, by: Judged, *, as_moved: bool = False) -> NDArray[np.float64]:
        grids = moved_grids(state, self.context) if as_moved else {}
        return noise_of(state, self.context.target, self.context.exclude, probe, by, grids)

    def _unneeded(self, step: Step) -> str | None:
        """Why there is nothing for a step to do; None if there is."""
        if step.name == Bias.name and any(record.name == Round.name and record.kept for record in self.records):
            return f"{Round.name} has set the biases"
        if step.name not in _FOR_ACTIVATIONS:
            return None
        share = 10.0 ** ((self.diagnosis.whole_db - self.diagnosis.activations_db) / 10.0)
        if share < _LITTLE:
            return f"activations make {100 * share:.1f} % of the noise"
        return None

    def _skipped(self, step: Step, reason: str) -> StepRecord:
        return StepRecord(step.name, "", False, None, None, None, 0.0, (), (f"not run: {reason}",))

    def _run(self, step: Step, by: Judged) -> StepRecord:
        began = time.perf_counter()
        found = step.propose(self.state, self.context)
        if not found.proposals:
            seconds = time.perf_counter() - began
            return StepRecord(step.name, "", False, None, None, None, seconds, (), tuple(found.notes), by)
        best = self._best(found.proposals, by, as_moved=step.name == Ranges.name)
        better = best.state
        before, after = (
            self._noise(state, self.check, by, as_moved=step.name == Ranges.name) for state in (self.state, better)
        )
        decibels = self.check.sqnr_db(before), self.check.sqnr_db(after)
        kept = decibels[1] > decibels[0] and falls(before, after, self.check.signal) > LIKELY
        notes = tuple(found.notes)
        if kept:
            self.state = better
        else:
            notes = (*notes, "dropped: it does not surely gain on held-out samples")
        _, interval = change_db(before, after, self.check.signal)
        seconds = time.perf_counter() - began
        return StepRecord(step.name, best.label, kept, *decibels, interval, seconds, best.changed, notes, by)

    def _best(self, proposals: Sequence[Proposal], by: Judged, *, as_moved: bool) -> Proposal:
        """The most cautious of the proposals that are as good as the best one, or nearly."""
        if len(proposals) == 1:
            return proposals[0]
        search = self.context.search
        scores = [search.sqnr_db(self._noise(p.state, search, by, as_moved=as_moved)) for p in proposals]
        return next(p for p, score in zip(proposals, scores, strict=True) if score >= max(scores) - _WORTH_DB)


def described_step(record: StepRecord) -> str:
    """One line on a step."""
    label = f" ({record.label})" if record.label else ""
    if record.before_db is None or record.after_db is None:
        return f"recover {record.name}: {record.notes[0] if record.notes else 'nothing to do'}"
    verdict = "kept" if record.kept else "dropped"
    of = " of activations alone" if record.judged_by == Judged.ACTIVATIONS else ""
    return (
        f"recover {record.name}{label}: {record.before_db:.2f} -> {record.after_db:.2f} dB{of} held out, {verdict}, "
        f"{record.seconds:.1f} s"
    )


def _described(diagnosis: Diagnosis) -> str:
    top = next((layer for layer in diagnosis.layers if layer.kind == "activation"), None)
    worst = f"; {100 * top.share:.0f} % of the activations' noise is {top.name}'s" if top is not None else ""
    return (
        f"recover SQNR with weights alone quantized {diagnosis.weights_db:.1f} dB, activations alone "
        f"{diagnosis.activations_db:.1f} dB, both {diagnosis.whole_db:.1f} dB{worst}"
    )


def _without_judge(state: State, steps: Sequence[Step], n: int) -> Recovered:
    """Nothing is done where nothing can be judged."""
    note = f"not run: {n} different samples, {LEAST} are needed to judge a step"
    records = tuple(StepRecord(step.name, "", False, None, None, None, 0.0, (), (note,)) for step in steps)
    record = RecoveryRecord(records, 0, 0, float("nan"), float("nan"))
    if not steps:
        return Recovered(state, record, ())
    message = f"no recovery step was run: {n} different samples, at least {LEAST} are needed to judge one"
    return Recovered(state, record, (Degradation(DegradationCode.RECOVERY_NOT_RUN, message),))


def _part(dataset: Dataset, ids: Collection[str]) -> Dataset:
    return dataset.part(ids) if isinstance(dataset, SourceDataset) else dataset


def _load(dataset: Dataset, held: Sequence[str], learned: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Samples that judge, and samples that are learned from, in the order of their ids' hashes, within memory."""
    wanted = {sample_id: number for number, sample_id in enumerate((*held, *learned))}
    found: dict[int, Sample] = {}
    room = len(wanted)
    for sample in _part(dataset, wanted):
        number = wanted.get(sample.id, len(wanted))
        if number < len(held) + min(room, len(learned)) and not room <= number < len(held):
            found[number] = sample
            size = sum(value.nbytes for value in sample.inputs.values())
            room = min(room, max(LEAST, _FIT_BYTES // max(size, 1)))
    judges = [found[i] for i in range(min(len(held), room)) if i in found]
    return judges, [found[i] for i in range(len(held), len(held) + min(room, len(learned))) if i in found]


def _fit_batches(samples: Sequence[Sample], fixed: int | None) -> Sequence[Mapping[str, NDArray[np.generic]]]:
    """Small batches of equal shapes; of a model with a fixed batch, full ones, the last filled with others."""
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(value.shape for value in sample.inputs.values()), []).append(sample)
    batches = []
    for group in groups.values():
        bytes_each = max(1, sum(value.nbytes for value in group[0].inputs.values()))
        size = fixed or max(1, min(_FIT_BATCH, _FIT_BATCH_BYTES // bytes_each))
        for start in range(0, len(group), size):
            part = group[start : start + size]
            if fixed:
                part += [group[i % len(group)] for i in range(fixed - len(part))]
            batches.append({name: np.stack([sample.inputs[name] for sample in part]) for name in part[0].inputs})
    return batches


__all__ = ["STEPS", "STEP_NAMES", "RecoverSettings", "Recovered", "parse_steps", "recover"]
