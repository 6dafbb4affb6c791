"""A bench with everything that a report has to show."""

from __future__ import annotations

import dataclasses

import numpy as np

from quantlab.harness.bench import Bench, BenchEngine, BenchSettings, Interleaved, Opening, QueryRow
from quantlab.harness.caution import Caution, CautionCode
from quantlab.harness.device_timing import EVENT_BOUNDARIES, GpuTimings
from quantlab.harness.end_to_end import EndToEnd
from quantlab.harness.energy import COUNTER, Energy
from quantlab.harness.gpu import Gpu
from quantlab.harness.latency import LatencySettings
from quantlab.harness.machine import Host
from quantlab.harness.measurement import Boundary, Change, Latency
from quantlab.harness.queries import QueryFigures, QueryTimes, file_figures, host_figures
from quantlab.harness.rebuilds import Build, rebuilds
from quantlab.harness.surroundings import Fingerprint, Surroundings
from quantlab.harness.timings import CONTROL, Stop, TimingCode, Timings, TimingWarning
from quantlab.harness.trtexec import spread
from quantlab.harness.trtexec_files import ImportedProfile, ImportedTimes, ProfileRow
from quantlab.precision import Execution, Precision
from quantlab.statistics.interval import Interval

FP32, INT8 = "tensorrt-rtx-fp32", "tensorrt-rtx-int8-mse"
HOST = Host("CPU", 16, "0-15", "performance", 3000.0, True, 0.5, 2, 8.0, 2**34, 2**28, 100.0, 500.0, 1.0, 20.0)
GPU = Gpu("NVIDIA H100", "9.0", "580.1", 81559, 1700, 2619, 1980, 700.0, "GPU-1", 300.0, 50, (), 0)
PRINT = Fingerprint("CPU", 16, 8.0, "performance", True, "Linux", "3.12", ("H100, 580, 700 W",), {"onnxruntime": "1.2"})


def latency(ratio: float, change: Change | None = None) -> Latency:
    return Latency(
        boundary=Boundary.HOST.words, batch_size=8, n_calls=640, median_ms=2.5 * ratio, p90_ms=2.75 * ratio,
        p99_ms=3.0 * ratio, throughput_per_s=8000 / 2.5 / ratio, ratio=ratio,
        ratio_interval=Interval(ratio * 0.99, ratio * 1.01, 0.95), change=change, log_error=0.005,
    )  # fmt: skip


def timings(**ratios: float) -> Timings:
    names = {name.replace("_", "-"): ratio for name, ratio in ratios.items()}
    reference = next(iter(names))
    latencies = {name: latency(ratio, None if name == reference else Change.FASTER) for name, ratio in names.items()}
    return Timings(
        latencies=latencies, noise_floor=Interval(0.998, 1.003, 0.95), control_ratio=1.0005, reference=reference,
        boundary=Boundary.HOST, settings=LatencySettings(), stop=Stop.PRECISION, elapsed_s=3.25, resolution_ns=50.0,
        labels=(*names, CONTROL), order=((0, 1, 2), (2, 1, 0)),
        blocks_ms={name: (2.5 * ratio, 2.5 * ratio) for name, ratio in {**names, CONTROL: 1.0}.items()}, warm_ups={},
        warnings=(TimingWarning(TimingCode.NOT_STATIONARY, "times had not settled", INT8),),
    )  # fmt: skip


def end_to_end() -> EndToEnd:
    """Reading takes 10 ms whatever the engine, running 2.5 and 1.5 ms."""

    def part(boundary: Boundary, *medians: float) -> Timings:
        made = timings(tensorrt_rtx_fp32=1.0, tensorrt_rtx_int8_mse=medians[1] / medians[0])
        latencies = {
            name: dataclasses.replace(
                one, boundary=boundary.words, median_ms=ms, p90_ms=1.1 * ms, p99_ms=None, throughput_per_s=8000 / ms
            )
            for (name, one), ms in zip(made.latencies.items(), medians, strict=True)
        }
        return dataclasses.replace(made, boundary=boundary, latencies=latencies)

    return EndToEnd(2, 8, 2, 2000, False, part(Boundary.END_TO_END, 12.5, 11.5), part(Boundary.READING, 10.0, 10.0))


def gpu_timings() -> GpuTimings:
    """The host's timings at every boundary, with ratios of their own."""

    def at(boundary: Boundary, ratio: float) -> Timings:
        found = timings(tensorrt_rtx_fp32=1.0, tensorrt_rtx_int8_mse=ratio)
        latencies = {name: dataclasses.replace(t, boundary=boundary.words) for name, t in found.latencies.items()}
        return dataclasses.replace(
            found, boundary=boundary, latencies=latencies, noise_floor=Interval(0.999, 1.002, 0.95), warnings=()
        )

    pairs = zip(EVENT_BOUNDARIES, (0.5, 1.0, 0.7), strict=True)
    return GpuTimings(2, 8, True, True, False, tuple(at(boundary, ratio) for boundary, ratio in pairs))


def gpu_query(compute_ms: float, **changes: object) -> QueryFigures:
    compute = np.array([compute_ms, compute_ms * 1.01, compute_ms * 0.99])
    half = np.full(3, 0.25)
    made = QueryFigures(
        "CUDA events", 3, 2, 8, 1, 0.01, 300.0, 2400.0, spread(compute + 0.5), spread(half), spread(compute),
        spread(half), spread(np.full(3, 0.02)), 3 * compute_ms / 1000, True, True, False,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def host_times() -> QueryTimes:
    start, spent = np.array([1.0, 4.0]), np.array([2.0, 3.0])
    zero, end = np.zeros(2), np.array([3.0, 7.0])
    return QueryTimes(start, end, start, start, start, end, end, end, zero, spent, zero, spent)


def trtexec_times() -> QueryTimes:
    start = np.array([10.0, 13.0])
    half, two = np.full(2, 0.5), np.full(2, 2.0)
    return QueryTimes(
        start, start + 0.25, start, start + half, start + half, start + 2.5, start + 2.5, start + 3.0, half, two, half,
        half + two + half,
    )  # fmt: skip


def engine(name: str, precision: Precision, size: int) -> BenchEngine:
    return BenchEngine(
        name, "tensorrt-rtx", precision, precision, Execution.NATIVE, size, f"{size:064x}", "net.onnx", "a" * 64
    )


def bench(**changes: object) -> Bench:
    """Two engines on a GPU, with one and two callers; files of trtexec; rebuilds."""
    builds = [
        Build("1" * 64, 12.0, 1.6, 0.64, Interval(0.63, 0.65, 0.95), 0.005),
        Build("2" * 64, 14.0, 1.4, 0.56, Interval(0.55, 0.57, 0.95), 0.005),
    ]
    made = Bench(
        reference=FP32,
        engines=(engine(FP32, Precision.FP32, 4_000_000), engine(INT8, Precision.INT8, 1_000_000)),
        data="random numbers, seed 0",
        data_sha256=None,
        settings=BenchSettings(batches=(8,), threads=(2,), streams=(1, 2)),
        openings=(Opening(FP32, 2, 120.0, 4.0), Opening(INT8, 2, 80.0, 3.0)),
        interleaved=(Interleaved(2, 8, timings(tensorrt_rtx_fp32=1.0, tensorrt_rtx_int8_mse=0.6)),),
        queries=(
            QueryRow(FP32, 2, 8, 1, gpu_query(2.0), Energy(640.0, 2.0, COUNTER, 1000, 8)),
            QueryRow(INT8, 2, 8, 1, gpu_query(1.0), None),
            QueryRow(FP32, 2, 8, 2, gpu_query(2.5, streams=2), None),
            QueryRow(INT8, 2, 8, 2, host_figures(host_times(), 4, 8, 2), None),
        ),
        rebuilds=(rebuilds(INT8, builds),),
        imported=(ImportedTimes("other", "b" * 64, file_figures(trtexec_times())),),
        imported_profiles=(ImportedProfile("layers", "c" * 64, 20, (ProfileRow("Conv|x", 40.0, 2.0, 1.9, 80.0),)),),
        fingerprint=PRINT,
        before=Surroundings("2026-11-21T20:00:00+00:00", HOST, (GPU,)),
        after=Surroundings("2026-11-21T20:01:00+00:00", HOST, (GPU,)),
        cautions=(Caution(CautionCode.MULTIPLE_STREAMS, "2 ran at once", FP32),),
        degradations=(),
        on_gpu=(gpu_timings(),),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]
