"""What is asked of a GPU for a sample, and in which order: on a CPU that plays one."""

import itertools
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import impls
from benchmarks.environment import gpu_state
from benchmarks.measure import timers
from benchmarks.measure.step import PASSES
from benchmarks.side_by_side import rounds
from benchmarks.side_by_side.rows import with_interval
from benchmarks.side_by_side.sampler import Sample
from benchmarks.workloads import workload


class NVMLError(Exception):
    pass


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What the played GPU is asked. It takes 7 ms between two events and holds 100 bytes more."""
    asked: list[str] = []
    empty, held = torch.empty, itertools.count(1000, 100)

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            asked.append("event")

        def elapsed_time(self, end: "Event") -> float:
            assert asked[-1] == "synchronize"  # before it, CUDA raises
            return 7.0

    class Scratch:
        def __init__(self, size: int):
            assert size == 2**28

        def fill_(self, value: int) -> None:
            asked.append("flush")

    def make(*size, device=None, **options):
        return Scratch(*size) if device == "cuda" else empty(*size, **options)

    stats = ("requested_bytes.all.current", "requested_bytes.all.peak")
    stats += ("reserved_bytes.all.current", "reserved_bytes.all.peak")
    card = SimpleNamespace(L2_cache_size=50 * 2**20, uuid="0-1")
    monkeypatch.setattr(torch, "empty", make)
    monkeypatch.setattr(timers, "METERS", {})  # they are replaced here on purpose
    for name, value in {
        "Event": Event,
        "_sleep": lambda cycles: asked.append(f"sleep {cycles}"),
        "synchronize": lambda: asked.append("synchronize"),
        "empty_cache": lambda: asked.append("empty_cache"),
        "reset_peak_memory_stats": lambda: asked.append("reset"),
        "memory_stats": lambda: dict.fromkeys(stats, next(held)),
        "get_device_properties": lambda: card,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return asked


@pytest.fixture
def nvml(monkeypatch) -> SimpleNamespace:
    """A library that tells of a card at its power limit; ``reasons`` may be changed."""
    names = ("Slowdown", "ThermalSlowdown", "PowerBrakeSlowdown")
    found = SimpleNamespace(
        **{f"nvmlClocksEventReasonHw{name}": 2 ** (4 + i) for i, name in enumerate(names)},
        nvmlClocksEventReasonSwThermalSlowdown=8,
        nvmlClocksEventReasonSwPowerCap=4,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        NVMLError=NVMLError,
        reasons=4,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-0-1": "handle"}[uuid],
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 2619}[kind],
        nvmlDeviceGetTemperature=lambda handle, sensor: 45,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: found.reasons,
    )
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


def test_the_device_waits_with_another_cache_until_the_host_has_launched_the_call(log) -> None:
    timer = timers.EventTimer()
    assert timer.milliseconds(lambda: log.append("call"), host=1.0) == 7.0
    assert log == ["flush", "sleep 7500000", "event", "call", "event", "synchronize"]


def test_a_loss_that_waits_for_the_device_does_not_make_it_wait_for_seconds(log) -> None:
    timers.EventTimer().milliseconds(lambda: None, host=5000.0)
    assert "sleep 60000000" in log


def test_launch_is_the_hosts_time_alone(log, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: time.sleep(0.1))
    assert 5 <= timers.launch(lambda: time.sleep(0.005)) < 50


def test_a_gpu_is_measured_in_every_metric(log, nvml, monkeypatch) -> None:
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0, "cuda": 0.0})
    monkeypatch.setattr(rounds, "missing_memory", lambda *_: "")  # 100 bytes hold no gradient
    losses = [impls.load("logits.builtin"), impls.load("logits.eager")]
    tensors = workload("tinystories_1m").tensors("logits", "float32")
    rows = list(map(with_interval, rounds.measure(losses, tensors, "float32", "cuda", PASSES)))
    of = {(row["impl"], row["metric"]): row for row in rows}
    exact = {"first_call", "error", "peak_memory", "saved_memory", "reserved_memory"}
    assert {metric for impl, metric in of if impl == "logits.eager"} == {*PASSES, *exact, "launch"}
    assert {metric for impl, metric in of if impl == "logits.reference"} == {*PASSES, "peak_memory"}
    assert all(of["logits.eager", pass_]["value"] == 7.0 for pass_ in PASSES)
    for name in ("peak_memory", "saved_memory", "reserved_memory"):
        assert of["logits.eager", name]["value"] == 100
    assert 0 < of["logits.eager", "launch"]["value"] < 1000
    state = "driver 580.1, SM 1980 MHz, memory 2619 MHz, 45 °C, limit 700 W, throttled 7 of 7"
    assert of["logits.eager", "forward"]["gpu_state"] == state
    assert of["logits.eager", "forward"]["n"] == rounds.ROUNDS[0]  # never are all left out
    # Nothing is freed to the device between samples: taking it back would be in a time.
    assert "empty_cache" not in log[log.index("flush") :]
    last_round = 2  # of the two losses, without the reference
    calls = 3 * (1 + rounds.ROUNDS[0]) + last_round
    assert Counter(log)["flush"] == calls * len(PASSES)


def test_samples_of_a_throttled_card_are_left_out_and_counted(log, nvml) -> None:
    card = gpu_state.card("cuda")
    cool, hot = card.read()._replace(throttled=False), card.read()
    cell, other = ("logits.eager", "forward"), ("logits.fused", "forward")
    samples = {cell: [Sample(*cell, 1.0 + n, hot if n < 20 else cool) for n in range(29)]}
    samples[other] = [Sample(*other, 1.0 + n, hot if n == 28 else cool) for n in range(29)]
    row = with_interval(rounds.sampled_row(cell, samples, False, card))
    # The round in which the other loss throttled is left out too, so both have the same rounds.
    assert row["samples"].split() == [str(1 + n) for n in range(20, 28)]
    assert rounds.usable(other, samples) == list(map(float, row["samples"].split()))
    assert row["gpu_state"].endswith("throttled 20 of 29")


def test_without_the_library_or_its_permission_nothing_is_known(log, nvml, monkeypatch) -> None:
    def refuse() -> None:
        raise NVMLError("Insufficient Permissions")

    nvml.nvmlInit = refuse
    assert gpu_state.card("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state.card("cuda") is None
    assert gpu_state.card("cpu") is None


def test_an_injected_slowdown_follows_the_clock_of_the_device(log, monkeypatch) -> None:
    """The clock rises from 1 to 2 GHz after the start, as that of a card does under load."""
    clock, spins = [1e6], []  # cycles in a millisecond

    def times(self, calls, host):
        calls[0]()
        spins.clear()
        calls[1]()
        return [2.0, spins[0] / clock[0]]

    monkeypatch.setattr(timers.torch_compat, "spin", spins.append)
    monkeypatch.setattr(timers.EventTimer, "times", times)
    calls = timers.Calls(lambda: lambda: None)
    assert calls.seconds(0.03) == pytest.approx(2.06e-3, rel=1e-3)
    clock[0] = 2e6
    calls.seconds(0.03)
    assert calls.seconds(0.03) == pytest.approx(2.06e-3, rel=1e-3)
    assert calls.seconds(0.0) == 2e-3
