"""Each dishonest loss is exposed by the gate, by a meter, or by the timing command."""

import os
import time

import pytest
import torch

import impls
from benchmarks.measure import memory, timers
from benchmarks.measure.availability import Unmeasurable, load
from benchmarks.measure.step import Step
from benchmarks.side_by_side import refusals, rounds
from benchmarks.side_by_side.cli import parse
from tests.dishonest import losses
from tests.gate.case import Wrong
from tests.gate.runner import check_property
from tests.wrong.correct import gradient_made_in_forward

PASSES = ("forward", "forward_backward", "forward_backward_unit")
NAME = "logits.dishonest"
WRONG = f"{NAME} has no times: in its timed forward the value is wrong: error "


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch) -> None:
    monkeypatch.setattr(rounds, "ROUNDS", (3, 3))
    monkeypatch.setattr(rounds, "noisy_times", lambda *_: set())


@pytest.fixture(autouse=True)
def meters_are_put_back():
    yield
    timers.restore_meters()


def loss(fn: losses.CrossEntropy) -> impls.Loss:
    return impls.Loss(NAME, "logits", fn, impls.Support(), "")


def tensors(n: int = 128, v: int = 20011, device: str = "cpu") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(n, v, generator=generator)
    target = torch.randint(v, (n,), generator=generator)
    return {"input": input.to(device), "target": target.to(device)}


def measured(
    fn: losses.CrossEntropy, passes=PASSES, device: str = "cpu", n: int = 128
) -> dict[str, list[float]]:
    """The samples of each pass of a loss that the timing command gives times for."""
    rows = list(rounds.measure([loss(fn)], tensors(n, device=device), "float32", device, passes))
    return {
        row["metric"]: row["samples"] for row in rows if row["impl"] == NAME and "samples" in row
    }


def expect_no_times(
    fn: losses.CrossEntropy, why: str, capsys, device: str = "cpu", n: int = 128
) -> None:
    assert measured(fn, device=device, n=n) == {}
    assert why in capsys.readouterr().err


def expect_rejected(fn: losses.CrossEntropy, check: str, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        check_property(loss(fn), check)


def test_a_right_loss_has_times_and_no_line(capsys) -> None:
    fn = impls.load("logits.builtin").fn
    assert measured(fn).keys() == set(PASSES)
    assert not capsys.readouterr().err
    check_property(loss(fn), "no_stale_state")


@pytest.mark.parametrize("key", [losses.address, losses.fingerprint])
def test_a_cache_is_stale_as_rows_change_places_at_the_same_address(key, capsys) -> None:
    expect_no_times(losses.caches_by(key), WRONG, capsys)


def test_a_cache_that_notices_each_change_is_never_hit() -> None:
    """It is right in each round, and computes a result for each sample."""
    keys = set()

    def first_column(input: torch.Tensor) -> object:
        keys.add(key := tuple(input[:, 0].tolist()))
        return key

    times = measured(losses.caches_by(first_column))
    assert len(keys) >= sum(map(len, times.values())) > 0


def test_the_gate_changes_contents_at_the_same_address() -> None:
    why = "wrong.*after the input changed in place"
    expect_rejected(losses.caches_by(losses.address), "no_stale_state", why)


def test_a_lazy_value_is_no_plain_tensor(capsys) -> None:
    expect_no_times(losses.lazy(), "in its timed forward the value is a Lazy", capsys)


def test_a_value_that_a_thread_fills_in_is_copied_too_early(capsys) -> None:
    expect_no_times(losses.in_thread(), WRONG, capsys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_work_on_another_stream(capsys) -> None:
    """The last round copies too early, or the events around the call show next to no time."""
    expect_no_times(losses.on_another_stream(), f"{NAME} has no times", capsys, "cuda")


def test_backward_in_forward_counts_in_both_and_has_its_times() -> None:
    """It is honest: its backward alone is short, and the total says so."""

    def four_times(input, target, **options):
        return [gradient_made_in_forward(input, target, **options) for _ in range(4)][-1]

    passes = parse(["--pass", "forward", "--pass", "backward"]).passes
    times = {pass_: min(samples) for pass_, samples in measured(four_times, passes).items()}
    assert times["backward"] < times["forward"]
    assert times["backward"] < times["forward_backward"] / 2


def test_backward_is_never_timed_without_the_total() -> None:
    assert parse(["--pass", "backward"]).passes == ["backward", "forward_backward"]
    assert parse(["--pass", "forward"]).passes == ["forward"]


def test_stale_memory_is_seen_by_the_gate() -> None:
    expect_rejected(losses.stale_value(), "no_stale_state", "a later call overwrites the value")
    in_buffer = losses.gradient_in(losses.kept_buffer())
    expect_rejected(in_buffer, "no_stale_state", "if another call comes between")


@pytest.mark.parametrize("memory_of", [losses.kept_buffer(), losses.mapped])
def test_a_peak_below_the_gradients_is_refused(memory_of, capsys) -> None:
    why = f"{NAME} is not timed: its peak memory of 0."
    expect_no_times(losses.gradient_in(memory_of), why, capsys)


@pytest.mark.skipif(not os.access(memory.PEAK_RESET, os.W_OK), reason="no peak can be reset here")
@pytest.mark.parametrize("allocate", losses.ALLOCATORS)
def test_memory_outside_torch_is_named(allocate, capsys) -> None:
    for fn in (losses.scratch_outside_torch(allocate), impls.load("logits.builtin").fn):
        assert list(rounds.memory_rows(Step(loss(fn), tensors()), "cpu"))
    [line] = capsys.readouterr().err.splitlines()  # nothing about the builtin loss
    assert line.startswith(f"{NAME} holds ")
    assert line.endswith("MiB or more outside torch's allocator; peak_memory lacks them")


def test_a_loss_that_knows_the_clock_is_checked_under_the_clock(capsys) -> None:
    fn = losses.cheats_if(losses.timed)
    check_property(loss(fn), "options")
    expect_no_times(fn, WRONG, capsys)


def test_a_loss_that_knows_the_gate_is_gated_all_the_same() -> None:
    expect_rejected(losses.cheats_if(losses.gated), "options", "the value is wrong")


def test_a_loss_that_knows_the_test_has_an_error_outside(capsys, monkeypatch) -> None:
    fn = losses.cheats_if(losses.outside_pytest)
    check_property(loss(fn), "options")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    expect_no_times(fn, f"{NAME} is not timed: gradients are wrong: error 1", capsys)


def test_a_time_below_the_floor_is_refused(capsys) -> None:
    """The loss knows the last round too, so only its times are left to judge by.

    To look whether it is timed takes it up to 0.3 ms. To read these logits takes some 3 ms.
    """
    fn = losses.cheats_if(lambda: losses.timed() and not losses.in_last_round())
    expect_no_times(fn, "which is half the time to read the logits once", capsys, n=640)


def test_the_floor_is_half_a_reading() -> None:
    times = {
        ("logits.reference", "forward"): [4.0],
        ("logits.reference", "forward_backward"): [8.0],
    }
    passes = {"forward": 1.9, "forward_backward": 1.9, "backward": 0.1}
    for pass_, time_ in passes.items():
        below = refusals.below_floor(times | {(NAME, pass_): [time_]}, "logits.reference")
        assert below == (set() if pass_ == "backward" else {NAME})
        above = times | {(NAME, pass_): [time_ + 0.2]}
        assert not refusals.below_floor(above, "logits.reference")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((time, "perf_counter"), (time, "perf_counter_ns"), (torch.profiler, "profile")),
        *((torch.autograd.profiler, "profile"), (torch.cuda.Event, "elapsed_time")),
    ],
)
def test_a_call_that_replaces_a_meter_is_refused(owner, name, capsys) -> None:
    fn = losses.replaces(owner, name, lambda *_, **__: 0.0)
    expect_no_times(fn, f"it replaces {owner.__name__}.{name}", capsys)


def test_a_meter_that_is_replaced_in_the_rounds_costs_all_losses_their_times(capsys) -> None:
    fn = losses.replaces(time, "perf_counter", lambda: 0.0, after=12)
    expect_no_times(fn, "no loss has times: one of them replaced time.perf_counter", capsys)


def test_a_loss_that_raises_in_the_last_round_has_no_times(capsys) -> None:
    def in_last_round() -> bool:
        assert not losses.in_last_round(), "not now"
        return False

    why = "left out from here on: AssertionError: not now"
    expect_no_times(losses.cheats_if(in_last_round), why, capsys)


def test_a_clock_that_is_replaced_within_a_call_changes_no_time() -> None:
    fn = losses.replaces(time, "perf_counter", lambda: 0.0)
    step = Step(loss(lambda input, target: time.sleep(0.02) or fn(input, target)), tensors(4))
    assert timers.seconds(step.forward, "cpu") >= 0.02
    assert timers.restore_meters() == "time.perf_counter"


def test_a_file_that_replaces_the_clock_is_not_loaded(tmp_path) -> None:
    file = tmp_path / "loss.py"
    file.write_text(
        "import time\nfrom torch.nn.functional import cross_entropy\ntime.perf_counter = float\n"
    )
    with pytest.raises(Unmeasurable, match=r"replaces time\.perf_counter, so it is not measured"):
        load(str(file), "float32", "cpu")
    assert time.perf_counter() > 0


def test_lower_precision_after_some_calls_is_in_the_last_round(capsys) -> None:
    fn = losses.half_precision_after(calls=12)
    expect_no_times(fn, WRONG, capsys)
