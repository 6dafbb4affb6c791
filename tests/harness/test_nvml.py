"""GPUs by NVML, with whatever it does not tell; energy by its counter or by sampled power."""

from __future__ import annotations

import itertools
import os
import sys
import time
from types import SimpleNamespace

import pytest
from fake_nvml import H100, FakeNvml

from quantlab.harness import energy
from quantlab.harness.energy import COUNTER, SAMPLED, Energy, EnergyMeter, integrate
from quantlab.harness.gpu import Gpu
from quantlab.harness.gpus import nvidia_gpus
from quantlab.harness.nvml import nvml_session, read_gpu, running_handle, throttle_words


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(dict(H100))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_everything_that_a_gpu_tells(nvml: FakeNvml) -> None:
    nvml.gpus[0] |= {
        "ComputeRunningProcesses": [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1), SimpleNamespace(pid=2)],
        "CurrentClocksEventReasons": 0x4 | 0x40,
    }
    assert nvidia_gpus() == (
        Gpu(
            "NVIDIA H100 80GB HBM3", "9.0", "580.159.04", 81559, 1755, 2619, 1980, 700.0,
            "GPU-11111111-2222-3333-4444-555555555555", 345.5, 51, ("software power cap", "hardware thermal slowdown"),
            2,
        ),
    )  # fmt: skip
    assert nvml.open == 0, "every session is shut down"


def test_a_gpu_that_tells_only_its_name(nvml: FakeNvml) -> None:
    nvml.gpus[0] = {"Name": b"Orin"}
    assert nvidia_gpus() == (Gpu("Orin", None, "580.159.04", None, None, None, None, None),)


def test_throttle_reasons_of_old_drivers(nvml: FakeNvml) -> None:
    del nvml.gpus[0]["CurrentClocksEventReasons"]
    nvml.gpus[0]["CurrentClocksThrottleReasons"] = 0x20
    assert read_gpu(nvml, 0).throttled == ("software thermal slowdown",)


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x100, 0x103])
def test_idle_user_clocks_and_display_are_no_throttling(bits: int) -> None:
    assert throttle_words(bits) == ()


def test_each_reason_has_its_own_word() -> None:
    words = [throttle_words(1 << bit) for bit in range(2, 8)]
    assert all(len(found) == 1 for found in words)
    assert len(set(words)) == 6


def test_a_package_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def nvmlInit(self) -> None:  # noqa: N802
            raise OSError("libnvidia-ml.so.1: cannot open")

    monkeypatch.setitem(sys.modules, "pynvml", Broken())
    with nvml_session() as found:
        assert found is None


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with nvml_session() as found:
        assert found is None


@pytest.mark.parametrize(
    ("visible", "handle"),
    [(None, 0), ("1", 1), ("1,0", 1), ("GPU-b", 1), ("", None), ("7", None), ("MIG-x", None)],
)
def test_the_gpu_that_cuda_calls_the_first(
    visible: str | None, handle: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml({"UUID": "GPU-a"}, {"UUID": "GPU-b"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert running_handle(fake) == handle


class TestEnergy:
    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = itertools.count(10.0, 2.0)
        monkeypatch.setattr(energy.time, "perf_counter", lambda: next(seconds))

    def test_by_the_counter(self) -> None:
        counter = itertools.count(5_000_000, 640_000)
        meter = EnergyMeter(FakeNvml({"TotalEnergyConsumption": lambda: next(counter)}), 0)  # type: ignore[arg-type]
        meter.start()
        assert meter.stop() == (640.0, 2.0, COUNTER)

    def test_a_counter_that_began_anew(self) -> None:
        counter = iter([5_000_000, 12])
        meter = EnergyMeter(FakeNvml({"TotalEnergyConsumption": lambda: next(counter)}), 0)  # type: ignore[arg-type]
        meter.start()
        assert meter.stop() is None

    @pytest.mark.parametrize("gpus", [(), ({"Name": "no power"},)])
    def test_nothing_to_measure_with(self, gpus: tuple[dict[str, str], ...]) -> None:
        meter = EnergyMeter(FakeNvml(*gpus), 0)  # type: ignore[arg-type]
        meter.start()
        assert meter.stop() is None
        without = EnergyMeter(None, None)
        without.start()
        assert without.stop() is None


def test_by_sampled_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_PERIOD_S", 0.001)
    monkeypatch.setattr(energy, "_SHORTEST_S", 0.0)
    meter = EnergyMeter(FakeNvml({"PowerUsage": 200_000}), 0)  # type: ignore[arg-type]
    meter.start()
    deadline = time.monotonic() + 10
    while len(meter._samples) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    found = meter.stop()
    assert found is not None
    joules, seconds, method = found
    assert method == SAMPLED
    assert 0 < joules <= 200.0 * seconds * (1 + 1e-9), "200 W over the samples, which lie within the measurement"


def test_too_short_says_nothing() -> None:
    counter = itertools.count(0, 1000)
    meter = EnergyMeter(FakeNvml({"TotalEnergyConsumption": lambda: next(counter)}), 0)  # type: ignore[arg-type]
    meter.start()
    assert meter.stop() is None, "the counter is refreshed every tenth of a second"


def test_the_trapezoidal_rule_by_hand() -> None:
    """100 to 300 W over 2 s: 400 J; 300 W over 1 s: 300 J."""
    assert integrate([(1.0, 100.0), (3.0, 300.0), (4.0, 300.0)]) == pytest.approx(700.0)
    assert integrate([(1.0, 100.0)]) is None


def test_energy_of_a_sample() -> None:
    found = Energy(joules=640.0, seconds=2.0, method=COUNTER, queries=1000, batch_size=8)
    assert (found.mean_w, found.millijoules_per_sample) == (320.0, 80.0)
