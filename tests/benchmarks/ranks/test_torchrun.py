"""Sharded losses under torchrun: measured in lock step, what they send counted, said once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from asv_runner.benchmarks.mark import SkipNotImplemented

import impls
from benchmarks import ROOT, sharded
from benchmarks.__main__ import main
from benchmarks.environment.variables import PINNED_ALLOCATOR, allocator
from benchmarks.measure import collectives, memory, timers, torch_compat
from benchmarks.measure.step import Step
from benchmarks.ranks import torchrun
from benchmarks.ranks.pool import Ranks
from benchmarks.side_by_side import rounds
from benchmarks.workloads import WORKLOADS
from reports.readers.schema import COLUMNS
from tests.benchmarks.terminal import run_on_terminal

NOTEBOOK = WORKLOADS["notebook"]


def command(ranks: int, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [sys.executable, *launcher, "-m", "benchmarks", *arguments]


def launch(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(ranks, *arguments),
        cwd=ROOT,
        env=os.environ | PINNED_ALLOCATOR,  # as it is wanted: no rank starts anew
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[str, pd.DataFrame]:
    out = tmp_path_factory.mktemp("measured") / "rows.csv"
    cell = ("--workload", "notebook", "--pass", "forward", "--impl", "sharded.eager")
    run = launch(2, *cell, "--out", str(out))
    shown, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    return shown, pd.read_csv(out)


def test_two_ranks_write_and_print_once(measured) -> None:
    shown, rows = measured
    assert list(rows) == [*COLUMNS, "text", "samples", "gpu_state", "noisy"]
    assert not rows.duplicated(["impl", "metric"]).any()
    counted = {"peak_memory", "sent", "collectives"}
    of = rows.groupby("impl")["metric"].agg(set)
    assert of["sharded.reference"] == counted | {"forward"}
    assert of["sharded.eager"] == counted | {"error", "saved_memory", "first_call", "forward"}
    assert set(rows["device"]) == {"cpu × 2"}
    assert shown.count("sharded · notebook · float32 · cpu × 2") == 1


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(measured, tmp_path) -> None:
    """On four ranks, each of which needs half as much memory as each of two."""
    out = tmp_path / "rows.csv"
    cell = ("--workload", "notebook", "--impl", "sharded.eager")
    run, shown = run_on_terminal(
        command(4, *cell, "--out", str(out)),
        interrupt_at=r"rounds \S+ +[1-9]\d*/",
        env=os.environ | PINNED_ALLOCATOR,
        start_new_session=True,
    )
    assert shown.count("interrupted") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
    rows = pd.read_csv(out)
    assert {"forward_backward", "communication", "overlap"} <= set(rows["metric"])
    assert (rows.loc[rows["metric"] == "forward_backward", "n"] < rounds.ROUNDS[1]).all()
    four, two = values(rows), values(measured[1])
    assert four["sharded.eager", "peak_memory"] < 0.6 * two["sharded.eager", "peak_memory"]


def values(rows: pd.DataFrame) -> pd.Series:
    return rows.set_index(["impl", "metric"])["value"]


def test_a_mistyped_name_is_said_once() -> None:
    run = launch(2, "--impl", "sharded.egar")
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "exitcode: 2" in errors
    ours = errors.partition("torch/distributed/elastic")[0]  # what follows is torchrun's
    assert ours.count("no implementation 'sharded.egar'; did you mean sharded.eager") == 1
    assert "Traceback" not in ours


@pytest.mark.parametrize(
    ("launched", "arguments", "says"),
    [
        (False, ["--impl", "sharded.eager"], "sharded.eager is only measured by torchrun --nproc"),
        (True, ["--impl", "linear.fused"], "linear.fused is not measured by torchrun --nproc"),
        (True, ["compare", "HEAD"], "compare is not for torchrun"),
        (True, ["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_refused_only_the_first_rank_says(
    launched, arguments, says, rank, monkeypatch, capsys
) -> None:
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("RANK", str(rank))
    elsewhere = [] if "compare" in arguments else ["--allocator", allocator()]
    try:
        code = main([*arguments, *elsewhere])
    except SystemExit as exit:  # argparse's
        code = exit.code
    output = capsys.readouterr()
    assert not output.out
    assert (code, output.err.count(says)) == ((0, 0) if launched and rank == 1 else (2, 1))


@pytest.fixture(scope="module")
def two():
    with Ranks(2) as ranks:
        yield ranks


def measure_in_few_rounds(rank, k: int, params: list[list[str]]):
    """What a rank measures for asv. The counts are the same in any number of rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "SECONDS", {"cpu": 0.0})
        patch.setattr(rounds, "noisy_times", lambda *_: set())  # no more rounds
        return sharded.measure_on_rank(rank, k, params)


@pytest.fixture(scope="module")
def tracked():
    """What asv's suite of two ranks tracks of what need not be compiled, at a small workload."""
    suite = sharded.CPUx2()
    names = ["sharded.eager", "sharded.dtensor", "sharded.reference"]
    suite.params = [names, ["notebook"], ["float32"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded.CPUx2, "params", suite.params)
        patch.setattr(sharded, "measure_on_rank", measure_in_few_rounds)
        numbers = suite.setup_cache()

    def of(impl: str, metric: str) -> float:
        return getattr(suite, f"track_{metric}")(numbers, impl, "notebook", "float32")

    return of


@pytest.mark.parametrize(
    ("impl", "numbers", "collectives"),
    [
        # The maximum; the sum of exponentials, the target logit, what smoothing needs.
        ("sharded.eager", 4, 4),
        ("sharded.dtensor", 3, 5),  # one of these three at a time
    ],
)
def test_what_is_sent_is_counted(tracked, impl, numbers, collectives) -> None:
    """The numbers of each row, how many classes each rank has, and the input's gradient."""
    rows = 4 * NOTEBOOK.tokens
    assert tracked(impl, "sent") == 2 * 8 + rows * (NOTEBOOK.hidden + numbers)
    assert tracked(impl, "collectives") == collectives


def test_asv_and_torchrun_count_alike(tracked, measured) -> None:
    of = values(measured[1])
    for impl in ("sharded.eager", "sharded.reference"):
        assert tracked(impl, "sent") == of[impl, "sent"]
        assert tracked(impl, "collectives") == of[impl, "collectives"]
    assert of["sharded.reference", "sent"] == 4 * NOTEBOOK.tokens * (NOTEBOOK.hidden + 1)
    with pytest.raises(SkipNotImplemented, match=r"sharded\.of_tomorrow has no sent"):
        tracked("sharded.of_tomorrow", "sent")


def hides(rank, k: int, wait_first: bool) -> list[tuple[float, float]]:
    """A reduction of 16 MiB beside a computation, which here is to wait, and longer than it."""
    payload = torch.ones(2**22)

    def run() -> None:
        work = dist.all_reduce(payload, async_op=True)
        if wait_first:
            work.wait()
        time.sleep(0.2)
        work.wait()

    with torchrun.in_step():
        return [collectives.communication(run, "cpu") for _ in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("wait_first", [False, True])
def test_overlap_is_what_is_gained_by_not_waiting(two, wait_first: bool) -> None:
    for measured in two.run(2, hides, wait_first):
        seconds, overlaps = zip(*measured, strict=True)
        assert min(seconds) > 0
        assert (sorted(overlaps)[2] > 0.5) != wait_first


class Link(torch_compat.TorchDispatchMode):
    """What is sent and large arrives when the rank begins its next product, or after a second."""

    def __init__(self):
        super().__init__()
        self.under_way: list[threading.Event] = []
        self.beside_a_product: list[bool] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith(("aten::mm", "aten::addmm")):
            while self.under_way:
                self.under_way.pop().set()
        result = func(*args, **(kwargs or {}))
        if not func.name().startswith("c10d::allreduce_") or args[0][0].nbytes < 2**16:
            return result
        tensors, work = result
        product, arrived = threading.Event(), torch.futures.Future()

        def arrive() -> None:
            self.beside_a_product.append(product.wait(1.0))
            torch_compat.wait(work)
            arrived.set_result(tensors)

        self.under_way.append(product)
        threading.Thread(target=arrive).start()
        return tensors, torch_compat.work_of(arrived)


def beside_products(rank, k: int, impl: str) -> list[bool]:
    """Which large reductions go on beside a product, where the tokens are three fused chunks."""
    generator = torch.Generator().manual_seed(0)
    input, weight = (torch.randn(n, 64, generator=generator) for n in (1152, 100))
    target = torch.randint(len(weight), (len(input),), generator=generator)
    step = Step(impls.load(impl), {"input": input, "linear_weight": weight, "target": target})
    with torch.compiler.set_stance("force_eager"), Link() as link:
        step.forward_backward()
    return link.beside_a_product


def test_fused_computes_while_it_sends_and_eager_does_not(two) -> None:
    assert two.run(2, beside_products, "sharded.fused") == [[True, True, False]] * 2
    assert two.run(2, beside_products, "sharded.eager") == [[False]] * 2


def interrupts(rank, k: int) -> bool:
    """Whether a rank stops measuring, where the last one alone is interrupted."""
    with torchrun.in_step():
        if rank.number == k - 1:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            timers.seconds(lambda: None, "cpu")
        except KeyboardInterrupt:
            return True
    return False


def test_who_interrupts_one_interrupts_all(two) -> None:
    assert two.run(2, interrupts) == [True, True]


def uneven(rank, k: int) -> tuple[float, int]:
    """One rank takes longer, the other more memory."""

    def run() -> torch.Tensor:
        time.sleep(0.1 * rank.number)
        return torch.empty(1000 * (2 - rank.number), dtype=torch.uint8)

    with torchrun.in_step():
        return timers.seconds(run, "cpu"), memory.peak_memory(run, "cpu")


def test_the_slowest_and_the_largest_rank_count(two) -> None:
    first, second = two.run(2, uneven)
    assert first == second
    assert first[0] >= 0.1
    assert first[1] == 2000
