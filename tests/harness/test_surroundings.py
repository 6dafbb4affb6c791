"""Cautions from the machine before and after, and what must agree between two measurements."""

from __future__ import annotations

import dataclasses

import pytest

from quantlab.errors import EngineMismatch
from quantlab.harness.bench_change import check_alike
from quantlab.harness.caution import CautionCode
from quantlab.harness.gpu import Gpu
from quantlab.harness.machine import Host
from quantlab.harness.surroundings import (
    Fingerprint,
    Surroundings,
    clock_cautions,
    differences,
    fingerprint_of,
    surroundings_cautions,
)

HOST = Host("CPU", 4, "0-3", "performance", 3000.0, False, 0.5, 2, None, None, 2**24, 100.0, 500.0, 1.0, 20.0)
GPU = Gpu("H100", "9.0", "580.1", 81559, 1700, 2619, 1980, 700.0, "GPU-1", 300.0, 50, (), 0)


def around(host: Host = HOST, *gpus: Gpu) -> Surroundings:
    return Surroundings("2026-11-21T20:00:00+00:00", host, gpus)


def later(**changes: object) -> Surroundings:
    """Ten seconds after, in which this process was busy on one processor and nobody else."""
    values: dict[str, object] = {"clock_s": 110.0, "busy_s": 510.0, "own_s": 30.0}
    return around(dataclasses.replace(HOST, **(values | changes)))  # type: ignore[arg-type]


def codes(before: Surroundings, after: Surroundings, threads: int = 2, callers: int = 1) -> list[CautionCode]:
    found = surroundings_cautions(before, after, threads=(1, threads), callers=(callers,), gpu=True)
    return [caution.code for caution in found]


def test_a_quiet_machine() -> None:
    assert codes(around(), later()) == []


@pytest.mark.parametrize(
    ("busy_s", "found"),
    [(512.0, []), (512.1, [CautionCode.OTHER_LOAD])],
    ids=["0.2 processors of others", "0.21 processors"],
)
def test_load_from_others(busy_s: float, found: list[CautionCode]) -> None:
    assert codes(around(), later(busy_s=busy_s)) == found


def test_load_is_said_in_processors() -> None:
    (caution,) = surroundings_cautions(around(), later(busy_s=525.0), threads=(1,), gpu=False)
    assert "used 1.5 processors" in caution.text


@pytest.mark.parametrize(("stolen_s", "found"), [(1.4, []), (1.41, [CautionCode.STOLEN_TIME])])
def test_stolen_time(stolen_s: float, found: list[CautionCode]) -> None:
    """One hundredth of 4 processors for 10 s is 0.4 s."""
    assert codes(around(), later(stolen_s=stolen_s)) == found


@pytest.mark.parametrize(
    ("quota", "threads", "callers", "found"),
    [
        (2.0, 2, 1, []),
        (1.9, 2, 1, [CautionCode.CPU_QUOTA]),
        (3.0, 2, 2, [CautionCode.CPU_QUOTA]),
        (None, 4, 1, []),
        (None, 5, 1, [CautionCode.TOO_MANY_THREADS]),
        (None, 2, 3, [CautionCode.TOO_MANY_THREADS]),
    ],
)
def test_threads_against_what_there_is(
    quota: float | None, threads: int, callers: int, found: list[CautionCode]
) -> None:
    assert codes(around(dataclasses.replace(HOST, cpu_quota=quota)), later(), threads, callers) == found


@pytest.mark.parametrize(("governor", "said"), [("powersave", True), ("performance", False), (None, False)])
def test_governor(governor: str | None, said: bool) -> None:
    found = codes(around(dataclasses.replace(HOST, governor=governor)), later())
    assert found == ([CautionCode.GOVERNOR] if said else [])


def test_others_on_the_gpu_count_before_and_throttling_after() -> None:
    before = around(HOST, dataclasses.replace(GPU, other_processes=2, throttled=("software power cap",)))
    after = Surroundings("", later().host, (dataclasses.replace(GPU, other_processes=3, throttled=("x slowdown",)),))
    found = surroundings_cautions(before, after, threads=(1,), gpu=True)
    assert [caution.code for caution in found] == [CautionCode.GPU_SHARED, CautionCode.THROTTLED]
    assert "2 other processes" in found[0].text
    assert "x slowdown" in found[1].text
    assert surroundings_cautions(before, after, threads=(1,), gpu=False) == (), "no engine ran there"


def test_a_machine_that_tells_nothing() -> None:
    blank = dataclasses.replace(HOST, governor=None, busy_s=None, stolen_s=None, cpu_quota=None)
    assert codes(around(blank), around(blank)) == []


@pytest.mark.parametrize(
    ("sm", "memory", "found"),
    [(1733, 2619, 0), (1665, 2619, 1), (1735, 2500, 2), (None, None, 0)],
    ids=["1.9 %", "2.06 %", "both", "not told"],
)
def test_clocks_that_changed(sm: int | None, memory: int | None, found: int) -> None:
    last = dataclasses.replace(GPU, clock_sm_mhz=sm, clock_memory_mhz=memory)
    cautions = clock_cautions({"int8": ((GPU,), (last,))})
    assert [caution.code for caution in cautions] == [CautionCode.CLOCKS_CHANGED] * found
    assert all(caution.subject == "int8" for caution in cautions)


def test_throttling_of_an_engine_is_said_once() -> None:
    hot = dataclasses.replace(GPU, throttled=("software power cap",))
    (caution,) = clock_cautions({"fp32": ((hot,), (hot,))})
    assert (caution.code, caution.subject) == (CautionCode.THROTTLED, "fp32")


PRINT = Fingerprint("CPU", 4, None, "performance", True, "Linux", "3.12", ("H100, 580, 700 W",), {"onnxruntime": "1.2"})


def test_the_same_fingerprint() -> None:
    assert differences(PRINT, dataclasses.replace(PRINT)) == ()


def test_every_key_that_differs_is_named_with_both_values() -> None:
    other = Fingerprint("CPU 2", 8, 1.5, None, None, "Linux 2", "3.13", (), {"onnxruntime": "1.3", "openvino": "2026"})
    found = [str(difference) for difference in differences(PRINT, other)]
    assert found == [
        "processor: CPU here, CPU 2 there",
        "cpus: 4 here, 8 there",
        "cpu_quota: none here, 1.5 there",
        "governor: performance here, unknown there",
        "boost: on here, unknown there",
        "system: Linux here, Linux 2 there",
        "python: 3.12 here, 3.13 there",
        "gpus[0]: H100, 580, 700 W here, absent there",
        "packages.onnxruntime: 1.2 here, 1.3 there",
        "packages.openvino: absent here, 2026 there",
    ]


def test_unlike_environments_are_refused_unless_allowed() -> None:
    other = dataclasses.replace(PRINT, governor="powersave")
    with pytest.raises(EngineMismatch, match="another environment") as caught:
        check_alike(PRINT, other, "old/bench.json", allowed=False)
    assert "governor: performance here, powersave there" in str(caught.value)
    assert "--allow-env-mismatch" in str(caught.value)
    assert [d.key for d in check_alike(PRINT, other, "old/bench.json", allowed=True)] == ["governor"]
    assert check_alike(PRINT, PRINT, "old/bench.json", allowed=False) == ()


def test_the_fingerprint_of_surroundings() -> None:
    found = fingerprint_of(around(HOST, GPU, dataclasses.replace(GPU, driver=None, power_limit_w=None)))
    assert found.gpus == ("H100, driver 580.1, 700 W", "H100, driver unknown, power limit unknown")
    assert (found.processor, found.cpus, found.governor, found.boost) == ("CPU", 4, "performance", False)
    assert found.packages["onnxruntime"]
