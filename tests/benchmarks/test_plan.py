"""The plan is what happens: its bytes are those that are measured, at sizes that can be."""

import functools
import re
import resource

import pandas as pd
import pytest
import torch

import impls
from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.measure import memory
from benchmarks.measure.references import REFERENCES
from benchmarks.measure.step import Step
from benchmarks.plan import cli
from benchmarks.plan.simulation import NotSimulated, Prediction, predict
from benchmarks.workloads import Workload, workload
from tests.benchmarks.test_commands import python

WITHIN = 0.02
ONEDNN = 2**19  # bytes of its own buffers for a product in bfloat16, whatever its size
SMALL = workload("notebook")
LOGITS = SMALL.tokens * SMALL.vocab


def planned(
    loss: impls.Loss, dtype: str = "float32", ranks: int = 1, of: Workload = SMALL
) -> Prediction:
    of_shape = cli.shapes(of, loss.level, ranks)
    return predict(functools.partial(Step, loss), of_shape, dtype, "cpu")


def both_levels(name: str) -> list[impls.Loss]:
    try:
        loss = impls.load(name)
    except impls.Unavailable as reason:
        pytest.skip(f"{name} {reason}")
    return [loss, loss.as_linear()] if loss.level == "logits" else [loss]


OF_ONE_PROCESS = [name for name in impls.names() if not name.startswith("sharded.")]


@pytest.mark.parametrize("name", OF_ONE_PROCESS)
def test_memory_is_what_is_measured(name: str) -> None:
    for loss in both_levels(name):
        if "cpu" not in loss.support.devices:
            pytest.skip(f"{name} does not run on a CPU")
        try:
            found = planned(loss)
        except NotSimulated as reason:
            pytest.skip(f"{loss.name}: {reason}")  # a test below says which losses
        step = Step(loss, SMALL.tensors(loss.level, "float32"))
        peak = memory.peak_memory(step.forward_backward, "cpu")
        assert found.peak_memory == pytest.approx(peak, rel=WITHIN)
        saved = memory.saved_memory(step.forward, "cpu")
        assert found.saved_memory == pytest.approx(saved, rel=WITHIN)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("logits.chunked_vocab", "gpt2_text@64"),
        ("linear.builtin", "notebook"),
        ("linear.torch_chunked", "notebook"),  # one custom operation, written in Python
    ],
)
def test_in_half_precision_too_with_what_the_cpu_converts(name: str, size: str) -> None:
    """But for what oneDNN holds beside torch's tensors, which is not the plan's to know."""
    of, loss = workload(size), both_levels(name)[0]
    step = Step(loss, of.tensors(loss.level, "bfloat16"))
    with torch.backends.mkldnn.flags(enabled=False):
        peak = memory.peak_memory(step.forward_backward, "cpu")
    assert planned(loss, "bfloat16", of=of).peak_memory == pytest.approx(peak, rel=WITHIN)


def test_what_cannot_be_simulated_says_so() -> None:
    reasons = {}
    for name in OF_ONE_PROCESS:
        try:
            planned(impls.load(name))
        except impls.Unavailable:
            continue
        except NotSimulated as reason:
            reasons[name] = str(reason)
    rivals = {"linear.cce", "linear.liger", "logits.liger", "linear.quack", "logits.quack"}
    rivals |= {"logprobs.liger"}
    ours = {name: why for name, why in reasons.items() if name not in rivals}
    why = "torch.compile decides what backward keeps"
    assert ours == {"linear.compiled": why, "logits.compiled": why}
    filtered = impls.load("linear.fused(filter_eps=1e-5)")
    with pytest.raises(NotSimulated, match="the data decide what it does"):
        planned(filtered)


def test_it_is_found_by_running_not_by_name(tmp_path) -> None:
    file = tmp_path / "eager.py"
    lines = ["import torch", "", "@torch.compile", "def cross_entropy(input, target):"]
    file.write_text("\n".join([*lines, "    return -input.log_softmax(1).diag().mean()", ""]))
    with pytest.raises(NotSimulated, match="compile decides"):
        planned(impls.load(str(file)))


def test_flops_and_bytes_are_counted() -> None:
    item = 4
    builtin = planned(impls.load("logits.builtin"))
    assert builtin.flops == 0
    # log_softmax reads and writes; nll_loss's backward is given log p, and writes zeros and a few
    # more; log_softmax's reads two and writes one.
    assert builtin.moved == pytest.approx(7 * LOGITS * item, rel=1e-2)
    linear = planned(impls.load("linear.builtin"))
    assert linear.flops == 6 * LOGITS * SMALL.hidden
    # A slice of the vocabulary is made again in backward.
    assert planned(impls.load("linear.chunked_vocab")).flops == 8 * LOGITS * SMALL.hidden
    # Backward makes a chunk's logits again, because the upstream gradient of a row is new to it.
    assert planned(impls.load("logprobs.fused")).flops == 8 * LOGITS * SMALL.hidden
    copy = predict(REFERENCES["logits"], cli.shapes(SMALL, "logits", 1), "float32", "cpu")
    assert (copy.peak_memory, copy.moved) == (LOGITS * item, 2 * LOGITS * item)
    # Forward reads the logits and writes their exponentials; backward reads and writes these.
    fused = planned(impls.load("logits.fused"))
    assert fused.moved == pytest.approx(4 * LOGITS * item, rel=1e-2)
    assert fused.sent == linear.sent == 0
    # The C++ kernel reads the logits and writes their gradient, both in forward.
    native = planned(impls.load("logits.native"))
    assert native.moved == pytest.approx(2 * LOGITS * item, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "made"), [("logits.triton", LOGITS * 4), ("logits.triton_in_place", 0)]
)
def test_a_triton_kernel_reads_and_writes_once_by_its_fake_implementation(name, made) -> None:
    """With a CUDA device or without."""
    [loss, _] = both_levels(name)
    shapes = cli.shapes(SMALL, "logits", 1)
    found = predict(functools.partial(Step, loss), shapes, "float32", "cuda")
    assert found.moved == pytest.approx(2 * LOGITS * 4, rel=1e-2)
    assert found.peak_memory == pytest.approx(made, abs=1e-2 * LOGITS)
    assert found.saved_memory == pytest.approx(made, abs=1e-2 * LOGITS)


@pytest.mark.parametrize("name", ["logits.triton", "logits.triton_in_place"])
def test_a_triton_kernel_holds_what_was_measured_on_a_gpu(name: str) -> None:
    [loss, _] = both_levels(name)
    rows = pd.read_csv(ROOT / "reports" / "measured" / "h100" / "numbers.csv")
    cells = rows[rows["impl"] == name].pivot_table("value", ["workload", "dtype"], "metric")
    assert len(cells)
    for (size, dtype), measured in cells.iterrows():
        shapes = cli.shapes(workload(size), "logits", 1)
        found = predict(functools.partial(Step, loss), shapes, dtype, "cuda")
        # The numbers are of an older commit, with another vector or two of N numbers.
        few = 2 * 8 * workload(size).tokens
        assert found.peak_memory == pytest.approx(measured["peak_memory"], rel=WITHIN, abs=few)
        assert found.saved_memory == pytest.approx(measured["saved_memory"], rel=WITHIN, abs=few)


@pytest.mark.parametrize(
    "name", ["sharded.eager", pytest.param("sharded.fused", marks=pytest.mark.slow)]
)
def test_of_ranks_each_plans_its_own(name: str, ranks) -> None:
    k = 2
    with cli.world(k):
        found = planned(impls.load(name), ranks=k)
    assert found.flops == 6 * SMALL.tokens * -(-SMALL.vocab // k) * SMALL.hidden
    item, n = 4, SMALL.tokens
    # The slices' sizes; of each row its maximum, then three sums; the input's gradient.
    assert found.sent == 8 * k + 4 * n * item + n * SMALL.hidden * item
    peak, saved = ranks.run(k, rank_memory, name)[0]
    assert found.peak_memory == pytest.approx(peak, rel=WITHIN)
    assert found.saved_memory == pytest.approx(saved, rel=WITHIN)


def rank_memory(rank, k: int, name: str) -> tuple[int, int]:
    tensors = SMALL.tensors("linear", "float32")
    tensors["linear_weight"] = tensors["linear_weight"].chunk(k)[rank.number].clone()
    loss = impls.load(name)
    step = Step(loss, tensors | {"group": rank.groups[k]})
    peak = memory.peak_memory(step.forward_backward, "cpu")
    return peak, memory.saved_memory(step.forward, "cpu")


def test_a_size_that_no_one_has_allocates_nothing(tmp_path) -> None:
    """A hundred gigabytes for the builtin; not of a million tokens, to be quick."""
    out = tmp_path / "plan.csv"
    run = python(
        *("benchmarks", "plan", "--workload", "llama3_405b", "--tokens", str(2**17)),
        *("--ranks", "8", "--dtype", "bfloat16", "--device", "cuda", "--out", str(out)),
    )
    assert run.returncode == 0, run.stderr
    # Of all processes that this one waited for, the largest.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB
    rows = pd.read_csv(out).set_index("impl")
    logits, weight = 2**17 * 128256 * 2, 128256 * 16384 * 2
    assert rows.loc["linear.builtin", "peak_memory"] > 3 * logits
    fused = rows.loc["linear.fused"]
    # Sixteen chunks.
    assert fused["peak_memory"] < weight + 2**17 * 16384 * 2 + 2**13 * 128256 * 2 * 1.01
    assert fused["compute_ms"] == pytest.approx(1e3 * fused["flops"] / 989e12)
    assert fused["flops"] == 3 * logits * 16384
    assert fused["fits"]
    sharded = rows.loc["sharded.fused"]
    assert (sharded["ranks"], sharded["flops"]) == (8, fused["flops"] / 8)
    assert sharded["network_ms"] == pytest.approx(1e3 * sharded["sent"] / 450e9)
    assert "linear.compiled cannot be simulated: torch.compile decides" in run.stdout
    assert re.search(r"\| linear.builtin .*does not fit", run.stdout)
    if not torch.cuda.is_available():
        assert "There is no CUDA here" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "H1000"], "A100 SXM 80 GB"),
        (["--workload", "llama3_405"], "did you mean llama3_405b"),
        (["--workload", "notebook", "--tokens", "9"], "the notebook has 8 tokens"),
        (["--tokens", "0"], "0: at least 1"),
        (["--impl", "logits.egar"], "did you mean logits.eager"),
        (["--impl", "sharded.eager"], "sharded.eager is planned with --ranks"),
        (["--impl", "linear.quack"], "linear.quack "),
        (["--impl", "logits.eager", "--out", "/proc/nothing/plan.csv"], "/proc/nothing"),
        (["--check", "--device", "cuda", "--impl", "logits.eager"], "no CUDA device here"),
    ],
)
def test_bad_input_gets_a_line_and_exit_2(arguments, says, tmp_path, capsys) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    try:
        code = main(["plan", "--out", str(tmp_path / "plan.csv"), *arguments])
    except SystemExit as exited:
        code = exited.code
    assert code == 2
    assert says in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_planned(tmp_path, monkeypatch, capsys) -> None:
    calls = iter([predict])

    def interrupted(*arguments):
        for call in calls:
            return call(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "predict", interrupted)
    out = tmp_path / "plan.csv"
    arguments = ["--impl", "logits.eager", "--workload", "notebook", "--out", str(out)]
    assert cli.main(arguments) == 130
    assert pd.read_csv(out)["impl"].tolist() == ["logits.eager"]
    assert "| logits.eager" in capsys.readouterr().out


def test_the_committed_table_is_within_two_percent() -> None:
    rows = pd.read_csv(ROOT / "reports" / "measured" / "plan.csv")
    checked = rows.dropna(subset="measured_peak_memory")
    assert {"float32", "bfloat16"} == set(checked["dtype"])
    assert {"linear.fused", "linear.torch_chunked", "logits.eager"} <= set(checked["impl"])
    for name in ("peak_memory", "saved_memory"):
        measured = checked[f"measured_{name}"].to_numpy()
        assert checked[name].to_numpy() == pytest.approx(measured, rel=WITHIN, abs=ONEDNN)
