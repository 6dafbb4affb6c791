"""The builder of TensorRT's flavours: a variant, or a network made by code, into an engine file with its sidecar."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from quantlab.engines.artifact import Made, vouch
from quantlab.engines.confirmation import UNTYPED
from quantlab.engines.cuda import DeviceFacts, open_device
from quantlab.engines.probe import probe_path
from quantlab.engines.protocol import Engine
from quantlab.engines.record import EngineRecord
from quantlab.engines.sidecar import sidecar_path
from quantlab.engines.tensorrt.calibration import NativeCalibration, NativeRun
from quantlab.engines.tensorrt.config import Session, TimingCache, add_profiles, load_plugins, make_config
from quantlab.engines.tensorrt.engine import TensorRTEngine
from quantlab.engines.tensorrt.evidence import ProbeFile, confirm_loaded, confirmed, write_probe
from quantlab.engines.tensorrt.flavour import Flavour, load_flavour
from quantlab.engines.tensorrt.graphs import GraphProof, graph_proof
from quantlab.engines.tensorrt.network import (
    Network,
    NetworkFunction,
    described_network,
    fill_network,
    graph_sha256,
    parse_onnx,
)
from quantlab.engines.tensorrt.options import BuildOptions, Typing
from quantlab.engines.tensorrt.profiles import NetworkInput, Profiles, fixed_batch, settle_profiles
from quantlab.engines.tensorrt.progress import BuildProgress, native_monitor, run_interruptible
from quantlab.engines.tensorrt.stdout import stdout_to_stderr
from quantlab.engines.tensorrt.weak import WEAK_PRECISIONS, WeakBuild, weak_build
from quantlab.engines.typed_variant import typed_graph_of
from quantlab.engines.variant import Variant, variant_name
from quantlab.errors import BackendUnavailable, ConfigError, EngineBuildError
from quantlab.files import remove_file, write_bytes, write_text
from quantlab.graph.qdq import Quantized
from quantlab.graph.targets import TENSORRT
from quantlab.precision import Execution, Precision
from quantlab.progress import Narrator, Silent

SUFFIX = ".engine"

_MOST_LINES = 3
_HINTS = (
    (
        r"CHECK\(dtype == myelinTypeFloat",  # TensorRT-RTX 1.6, of a convolution with 8-bit operands
        (
            "this version has no 8-bit convolutions: use TensorRT-RTX 1.7 or later, keep them out with --exclude, "
            "or build fp8 or fp16"
        ),
    ),
    (
        r"no tactics? to implement|workspace limit|insufficient workspace",
        "raise --workspace, or leave it out",
    ),
    (
        r"out of memory|OutOfMemory|MEM_ALLOC|memory allocation|GPU memory|CUDA_ERROR_OUT_OF_MEMORY",
        "lower --workspace or the MAX of --shapes, or free the GPU's memory",
    ),
    (r"lean|dispatch", "leave out --version-compatible, or install the lean runtime of this version"),
    (
        r"driver version is insufficient|no CUDA-capable|CUDA_SUCCESS|cudaError|CUDA initialization",
        "this needs a GPU and its driver: leave out --refit and --strip, or build where there is one",
    ),
    (r"Turing|SM75", "name another --compute-capability, or build fp16"),
    (r"dtype must be|not supported|unsupported|Plugin", "build another precision, or keep the layer out: --exclude"),
)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """An engine in memory, with what it was made under."""

    content: bytes
    profiles: Profiles
    notes: tuple[str, ...]
    cache: TimingCache | None
    inputs: tuple[NetworkInput, ...]


class TensorRTBuilder:
    """Builds engines with one flavour of TensorRT.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        options: What the builder is told besides graph and shapes.
        narrator: Told of progress and of what was decided.
        calibration: Calibration by TensorRT itself, for INT8 with weak typing.
    """

    def __init__(
        self,
        backend: str,
        options: BuildOptions | None = None,
        narrator: Narrator | None = None,
        calibration: NativeCalibration | None = None,
    ) -> None:
        self.backend = backend
        self.options = options or BuildOptions()
        self._narrator = narrator or Silent()
        self._calibration = calibration

    def supports(self, variant: Variant) -> str | None:
        """See `EngineBuilder.supports`."""
        try:
            flavour = load_flavour(self.backend)
        except BackendUnavailable as error:
            return f"{error.what}: {error.got}"
        if self.options.typing is Typing.WEAK:
            if not flavour.has_weak_types:
                return f"{flavour.product} is always strongly typed; leave out --typing weak"
            if variant.precision not in WEAK_PRECISIONS:
                return f"{variant.precision} is stated by the types of a graph; leave out --typing weak"
        if variant.quantized and variant.target.name != TENSORRT.name:
            return f"{flavour.product} takes symmetric INT8 and FP8 only: use --target {TENSORRT.name}"
        return None

    def build(self, variant: Variant, folder: Path) -> Path:
        """See `EngineBuilder.build`.

        Raises:
            KeyboardInterrupt: If it was interrupted; nothing was written then.
        """
        flavour = self._flavour(variant)
        device = _device(flavour)
        weak = None
        if self.options.typing is Typing.WEAK:
            weak = weak_build(variant, flavour, self._narrator, self._calibration, self.options.profiles)
            variant = dataclasses.replace(variant, recovery=None)
        native = weak.native if weak is not None else None
        graph = weak.graph if weak is not None else typed_graph_of(variant)
        source = variant.model

        def network(session: Session) -> Network:
            return parse_onnx(session, graph.proto, source, self.options.typing)

        method = native.ranges.method if native is not None else variant.method
        name = variant_name(self.backend, variant.precision, method, len(graph.excluded), variant.recovered)
        try:
            compiled = self._compile(flavour, network, name, variant.precision, device, weak)
        finally:
            if weak is not None:
                weak.close()
        if weak is not None:
            graph = dataclasses.replace(graph, degradations=weak.degradations)
        proof = weak.proof if weak is not None else graph_proof(variant, graph)
        sha256 = graph_sha256(graph.proto, source)
        return self._finish(folder, name, flavour, device, variant, graph, compiled, proof, sha256, native)

    def build_network(self, source: NetworkFunction, precision: Precision, folder: Path) -> Path:
        """Build a network that Python code makes. Its own types decide, so that only FP32 and TF32 can be asked for.

        Raises:
            BackendUnavailable: If the backend is not available here.
            ConfigError: If another precision, or weak typing, is asked for.
            EngineBuildError: If the code fails or the network is refused.
            OutputError: If a file cannot be written.
        """
        check_network_precision(precision, self.options)
        flavour = load_flavour(self.backend)
        device = _device(flavour)
        found: list[Variant] = []

        def network(session: Session) -> Network:
            made = fill_network(session, source)
            prepared = described_network(session, made, source)
            found.append(Variant(prepared, self.backend, precision, TENSORRT))
            return made

        name = variant_name(self.backend, precision, None, 0)
        compiled = self._compile(flavour, network, name, precision, device, None)
        (variant,) = found
        proof = GraphProof(f"network made by {source.reference}; its types are its own")
        graph = Quantized(variant.prepared.model.proto, (), (), {}, ())
        return self._finish(folder, name, flavour, device, variant, graph, compiled, proof, "")

    def load(self, path: Path, threads: int) -> Engine:
        """See `EngineBuilder.load` and `open`; ``threads`` has no meaning here."""
        return self.open(path)

    def open(self, path: Path, contexts: int = 1) -> TensorRTEngine:
        """Open an engine file that as many threads as there are ``contexts`` can run at once.

        An engine that was never run, because it was built where there was no GPU, is run on its probe now, and its
        sidecar in memory says what that showed (see `confirm_loaded`).

        Raises:
            QuantlabError: As for `TensorRTEngine`.
        """
        engine = TensorRTEngine(path, contexts=contexts, plugins=self.options.plugins)
        try:
            before = engine.sidecar
            confirm_loaded(engine, path)
        except BaseException:
            engine.close()
            raise
        if engine.sidecar is not before:
            found = engine.sidecar
            self._narrator.say(f"proved {found.name}: {found.proved or 'nothing'} ({found.proof})")
        return engine

    def _flavour(self, variant: Variant) -> Flavour:
        flavour = load_flavour(self.backend)
        reason = self.supports(variant)
        if reason is not None:
            raise BackendUnavailable(f"cannot build {variant.precision}", got=reason)
        return flavour

    def _compile(
        self,
        flavour: Flavour,
        make_network: Callable[[Session], Network],
        name: str,
        precision: Precision,
        device: DeviceFacts | None,
        weak: WeakBuild | None,
    ) -> _Compiled:
        """Network and configuration to engine, on a thread of its own; writes nothing."""
        progress = BuildProgress()
        if weak is not None:
            weak.attach(progress)

        def work() -> _Compiled | None:
            session = Session.open(flavour)
            load_plugins(session, self.options.plugins)
            network = make_network(session)
            profiles, notes = settle_profiles(network.inputs, self.options.profiles)
            tf32 = precision is Precision.TF32
            config = make_config(session, self.options, tf32=tf32, current_gpu=device is not None)
            add_profiles(session, config, profiles, network.inputs)
            path = self.options.timing_cache
            cache = TimingCache(session, config, path) if path is not None else None
            if weak is not None:
                weak.configure(session, config, network)
            config.progress_monitor = native_monitor(flavour.module, progress)
            if progress.stop.is_set():
                return None
            session.log.clear()
            engine = session.builder.build_serialized_network(network.native, config)
            if weak is not None:
                weak.raise_pending()
            if progress.stop.is_set():
                return None
            if engine is None:
                raise _build_error(session, name)
            if weak is not None:
                weak.complete()
            return _Compiled(bytes(engine), profiles, notes, cache, network.inputs)

        with stdout_to_stderr():
            compiled = run_interruptible(work, progress, self._narrator, f"building {name}")
        if compiled is None:  # stopped by an exception in a callback, which is a defect of ours
            raise EngineBuildError(f"the build of {name} was stopped", hint="run it again with --debug")
        for note in compiled.notes:
            self._narrator.say(f"       {note}")
        return compiled

    def _finish(
        self,
        folder: Path,
        name: str,
        flavour: Flavour,
        device: DeviceFacts | None,
        variant: Variant,
        graph: Quantized,
        compiled: _Compiled,
        proof: GraphProof,
        onnx_sha256: str,
        native: NativeRun | None = None,
    ) -> Path:
        """Write engine, probe, sidecar, calibration cache and timing cache; all or, if one fails, none."""
        path = folder / f"{name}{SUFFIX}"
        beside = {folder / file: text for file, text in native.files.items()} if native is not None else {}
        fixed = fixed_batch(compiled.profiles)
        variant = dataclasses.replace(variant, prepared=dataclasses.replace(variant.prepared, fixed_batch=fixed))
        remove_file(sidecar_path(path))
        with _all_or_none(path, sidecar_path(path), probe_path(path), *beside):
            write_bytes(path, compiled.content)
            for file, text in beside.items():
                write_text(file, text)
            own = graph.proto if graph.proto is not variant.prepared.model.proto else None
            probe = write_probe(
                probe_path(path), variant.prepared, own, compiled.profiles, compiled.inputs, variant.model
            )
            nothing_run = "nothing was run, as there is no GPU here" if device is None and proof.proof is None else ""
            made = Made(
                name=name,
                path=path,
                size_bytes=len(compiled.content),
                graph=graph,
                proved=proof.precision,
                proof="; ".join(part for part in (proof.text, nothing_run, probe.note) if part),
                execution=Execution.NATIVE,
                environment=_environment(flavour),
                engine=self._record(flavour, device, compiled, variant.precision, onnx_sha256, probe, proof, native),
                ranges=native.ranges if native is not None else None,
            )
            vouch(variant, made)
            if device is not None:
                vouch(variant, confirmed(made, variant.precision, proof, probe, self.options.plugins))
            if compiled.cache is not None:
                compiled.cache.save()
        return path

    def _record(
        self,
        flavour: Flavour,
        device: DeviceFacts | None,
        compiled: _Compiled,
        precision: Precision,
        onnx_sha256: str,
        probe: ProbeFile,
        proof: GraphProof,
        native: NativeRun | None,
    ) -> EngineRecord:
        options = self.options.described() | {"tf32": "yes" if precision is Precision.TF32 else "no"}
        if flavour.builds_without_gpu and device is not None:
            options.setdefault("compute-capability", "current")
        options |= native.options if native is not None else {}
        return EngineRecord(
            flavour=self.backend,
            version=flavour.version,
            gpu=device.name if device else None,
            compute_capability=device.compute_capability if device else None,
            driver=device.driver if device else None,
            cuda=device.cuda if device else None,
            options=options,
            profiles=compiled.profiles,
            onnx_sha256=onnx_sha256,
            probe=probe.path.name if probe.path else None,
            probe_sha256=probe.sha256,
            stated=proof.proof.text if proof.proof is not None else proof.text,
        )


def check_network_precision(precision: Precision, options: BuildOptions) -> None:
    """Refuse what a network that is made by code cannot be built in.

    Raises:
        ConfigError: If it is another precision than FP32 and TF32, or weak typing.
    """
    if precision not in UNTYPED or options.typing is Typing.WEAK:
        raise ConfigError(
            "a network made by Python code is strongly typed, and is built as it is",
            got=f"{precision} with {options.typing} typing", expected="--precisions fp32 or tf32, or both",
            hint="let the code give its layers the types of another precision",
        )  # fmt: skip


def _device(flavour: Flavour) -> DeviceFacts | None:
    """The GPU that is here; None without one, where the flavour can do without.

    Raises:
        BackendUnavailable: If the flavour needs one.
    """
    try:
        return open_device().facts
    except BackendUnavailable as cause:
        if flavour.builds_without_gpu:
            return None
        raise BackendUnavailable(
            f"{flavour.product} builds engines only on the GPU that will run them",
            got=f"{cause.what}: {cause.got}" if cause.got else cause.what,
            hint=cause.hint or "use --backend tensorrt-rtx, which builds without a GPU",
        ) from cause


def _environment(flavour: Flavour) -> dict[str, str]:
    return {flavour.backend: flavour.version, "onnx": version("onnx"), "numpy": version("numpy")}


def _build_error(session: Session, name: str) -> EngineBuildError:
    lines = session.log.errors or session.log.warnings
    text = "; ".join(_short(line) for line in lines[-_MOST_LINES:]) or "it gave no reason"
    everything = "\n".join(lines)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, everything, re.IGNORECASE)), None)
    return EngineBuildError(
        f"{session.flavour.product} cannot build {name}", got=text, hint=hint or "see TensorRT's log with --debug"
    )


def _short(line: str) -> str:
    """A line of the log without the places in TensorRT's own source code."""
    text = " ".join(line.split())
    text = re.sub(r"\[?\w+\.(cpp|h):\d+: \w+\] ", "", text)
    return re.sub(r"\s*In \w+ at \S+?:\d+", "", text)[:500]


@contextmanager
def _all_or_none(*paths: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an engine that nothing vouches for must not be found
        for path in paths:
            path.unlink(missing_ok=True)
        raise
