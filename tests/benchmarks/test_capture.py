"""A call of a loss in a training script is recorded as it was, and nothing of it stays behind."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import benchmarks
import impls
from benchmarks.workloads import workload
from benchmarks.workloads.capture import NotCaptured

pytest.importorskip("safetensors")

N, D, V = 6, 8, 40


@pytest.fixture
def file(tmp_path) -> Path:
    torch.manual_seed(0)
    return tmp_path / "run.safetensors"


def replayed(file: Path, level: str) -> dict:
    return workload(f"file:{file}").tensors(level, "float32")


def left_in(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


def test_a_loss_of_logits_is_recorded_with_its_options(file, capsys) -> None:
    logits, target, weight = torch.randn(N, V), torch.tensor([3, 1, 3, 4, 5, 9]), torch.rand(V)
    with benchmarks.capture(file):
        cross_entropy(
            *(logits, target, weight),
            **{"ignore_index": 3, "reduction": "sum", "label_smoothing": 0.1},
        )
    found = replayed(file, "logits")
    assert found.pop("input").equal(logits)
    assert found.pop("target").equal(target)
    assert found.pop("weight").equal(weight)
    assert found == {"ignore_index": 3, "reduction": "sum", "label_smoothing": 0.1}
    assert "6 tokens, 33.3% ignored, 40 logits, float32, ignore_index=3" in capsys.readouterr().err
    assert left_in(file) == [file.name]


def test_with_the_head_both_levels_are_replayed(file) -> None:
    """The script leaves out the last row of each sequence and computes its loss in float32."""
    head, hidden = nn.Linear(D, V).bfloat16(), torch.randn(2, 4, D).bfloat16()
    target = torch.randint(V, (2, 3))
    with benchmarks.capture(file, head=head):
        logits = head(hidden)[:, :-1].float()
        nn.CrossEntropyLoss()(logits.transpose(1, 2), target)
    linear = replayed(file, "linear")
    assert linear["input"].equal(hidden[:, :-1].flatten(0, 1).float())
    assert linear["linear_weight"].equal(head.weight.float())
    assert linear["linear_bias"].equal(head.bias.float())
    assert linear["target"].equal(target.flatten())
    of_logits = replayed(file, "logits")
    torch.testing.assert_close(of_logits["input"], logits.flatten(0, 1), rtol=2e-2, atol=2e-2)
    assert "linear_bias" not in of_logits
    assert not vars(head)["_forward_hooks"]


def arguments() -> dict[str, Tensor]:
    return {
        "input": torch.randn(N, D),
        "linear_weight": torch.randn(V, D),
        "target": torch.randint(V, (N,)),
    }


def test_losses_of_this_repository_are_recorded(file) -> None:
    given, options = arguments(), {"softcap": 3.0, "z_loss": 1e-3}
    with benchmarks.capture(file):
        impls.load("linear.fused").fn(**given, **options)
    found = replayed(file, "linear")
    assert {name: found.pop(name) for name in options} == options
    assert all(found.pop(name).equal(tensor) for name, tensor in given.items())
    assert not found


@pytest.mark.parametrize("name", ["linear.builtin", "logits.eager", "torch"])
def test_the_second_call_is_recorded(file, name: str) -> None:
    """What a loss calls itself does not count: linear.builtin calls F.cross_entropy."""
    fn: Callable[..., Tensor]
    if name == "torch":
        if not hasattr(F, "linear_cross_entropy"):
            pytest.skip("this torch has no F.linear_cross_entropy")
        fn = F.linear_cross_entropy
    else:
        loss = impls.load(name)
        fn = (loss if loss.level == "linear" else loss.as_linear()).fn
    calls = [arguments() for _ in range(3)]
    with benchmarks.capture(file, step=1):
        for call in calls:
            fn(**call, label_smoothing=0.1)
    found = replayed(file, "linear")
    assert found.pop("label_smoothing") == 0.1
    assert found.keys() == calls[1].keys()
    assert all(found[name].equal(tensor) for name, tensor in calls[1].items())


def test_while_torch_compile_traces_nothing_is_recorded(file) -> None:
    logits, target = torch.randn(N, V), torch.randint(V, (N,))
    compiled = torch.compile(lambda x: cross_entropy(2 * x, target), backend="eager")
    with benchmarks.capture(file):  # the first call is traced with tensors that have no numbers
        compiled(logits)
    assert replayed(file, "logits")["input"].equal(2 * logits)


def profiler(*_: object) -> None: ...


def test_an_error_in_the_script_leaves_nothing_behind(file) -> None:
    head = nn.Linear(D, V)
    sys.setprofile(profiler)
    try:
        with pytest.raises(ZeroDivisionError), benchmarks.capture(file, head=head):
            raise ZeroDivisionError
        assert sys.getprofile() is profiler
        with benchmarks.capture(file):
            cross_entropy(torch.randn(N, V), torch.randint(V, (N,)))
            assert sys.getprofile() is profiler  # no slower than before
    finally:
        sys.setprofile(None)
    assert not vars(head)["_forward_hooks"]


def capped(head: nn.Module, hidden: Tensor) -> Tensor:
    return 30 * torch.tanh(head(hidden) / 30)


@pytest.mark.parametrize(
    ("step", "logits_of", "options", "says"),
    [
        (0, None, {}, "no loss was called"),
        (1, nn.Module.__call__, {}, "called 1 times, so there was no step 1"),
        (0, capped, {}, r"the loss's input \(6, 40\) is not the output \(6, 40\) of head"),
        (0, lambda _, hidden: hidden @ torch.ones(D, V), {}, "head was not called"),
        (0, nn.Module.__call__, {"reduction": "sum", "reduce": False}, "give the loss a reduction"),
    ],
)
@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
def test_what_cannot_be_replayed_is_said(file, step, logits_of, options, says) -> None:
    head = nn.Linear(D, V)

    def train() -> None:
        if logits_of:
            cross_entropy(logits_of(head, torch.randn(N, D)), torch.randint(V, (N,)), **options)

    with pytest.raises(NotCaptured, match=says), benchmarks.capture(file, step, head):
        train()
    assert sys.getprofile() is None
    assert left_in(file) == []


def test_targets_that_are_probabilities_are_refused(file) -> None:
    with pytest.raises(NotCaptured, match="probabilities"), benchmarks.capture(file):
        cross_entropy(torch.randn(N, V), torch.rand(N, V))


def test_what_is_missing_is_said_before_the_training(file, monkeypatch) -> None:
    with pytest.raises(NotCaptured, match=r"no folder .*missing"):
        benchmarks.capture(file.parent / "missing" / file.name).__enter__()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotCaptured, match="needs the package safetensors"):
        benchmarks.capture(file).__enter__()


def test_two_recordings_to_the_same_path_are_refused(file) -> None:
    """Two ranks would each write the file. Afterwards the path can be recorded to again."""
    for _ in range(2):
        with benchmarks.capture(file):
            with pytest.raises(NotCaptured, match=r"another recording to .* is open: record on"):
                benchmarks.capture(file).__enter__()
            cross_entropy(torch.randn(N, V), torch.randint(V, (N,)))
    assert left_in(file) == [file.name]


TRAINS = """
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import benchmarks

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(nn.Linear(8, 40))
torch.manual_seed(rank)
with benchmarks.capture(sys.argv[1].replace("RANK", str(rank)), step=1, head=model.module):
    for _ in range(3):
        F.cross_entropy(model(torch.randn(6, 8)), torch.full((6,), rank)).backward()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_each_of_two_ranks_records_to_a_path_of_its_own(tmp_path) -> None:
    (tmp_path / "trains.py").write_text(TRAINS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(benchmarks.ROOT), *sys.path])
    run = subprocess.run(
        [*launcher, "trains.py", "runRANK.safetensors"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for rank in (0, 1):
        recorded = replayed(tmp_path / f"run{rank}.safetensors", "linear")
        assert recorded["target"].tolist() == [rank] * 6
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_the_script_of_the_documentation_makes_a_workload(tmp_path) -> None:
    script = [sys.executable, str(benchmarks.ROOT / "docs" / "make_small_run.py"), "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(benchmarks.ROOT), *sys.path])}
    run = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    recorded = workload(f"file:{tmp_path}/run.safetensors")
    assert (recorded.tokens, recorded.hidden, recorded.vocab) == (1024, 128, 50257)
    of_config = workload(f"config:{tmp_path}/config.json")
    assert (of_config.hidden, of_config.vocab) == (128, 50257)
