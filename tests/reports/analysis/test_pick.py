"""``python -m reports pick``: the fastest right loss that fits, measured or planned, to paste."""

import re

import pytest
import torch

from benchmarks.workloads import WORKLOADS
from reports.__main__ import main
from reports.analysis.pick import Model
from reports.analysis.selection import shape
from tests.reports.rows import MIB, loss, write_csv


@pytest.fixture
def pick(tmp_path, capsys):
    def run(rows: list[dict[str, object]], workload: str, memory: str, *more: str):
        file = write_csv(tmp_path, *rows)
        code = main(["pick", "--workload", workload, "--memory", memory, *more, str(file)])
        return code, *capsys.readouterr()

    return run


MEASURED = [
    *loss("linear.reference", 1.0, 100),
    *loss("linear.builtin", 767.0, 589),
    *loss("linear.logits.fused", 729.0, 393),
    *loss("linear.fused", 779.0, 216),
    *loss("linear.wrong", None, 100),
    *loss("logits.fused", 30.0, 50),
]


@pytest.mark.parametrize(
    ("memory", "impl"),
    [("8GiB", "logits.fused"), ("393MiB", "logits.fused"), ("392MiB", "fused"), ("230MB", "fused")],
)
def test_the_fastest_that_fits(pick, memory, impl) -> None:
    code, out, _ = pick(MEASURED, "gpt2_text", memory)
    assert code == 0
    assert f"linear.{impl}:" in out
    assert "predicted" not in out


def test_the_line_can_be_pasted(pick) -> None:
    _, out, _ = pick(MEASURED, "gpt2_text", "300MiB")
    namespace: dict[str, object] = {}
    exec(out, namespace)  # the lines above the import are comments
    x, weight, y = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([1, 2, 0])
    expected = torch.nn.functional.cross_entropy(x @ weight.T, y)
    assert namespace["linear_cross_entropy"](x, weight, y).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("workload", "memory", "more", "says"),
    [
        ("gpt2_txt", "8GiB", [], "no workload 'gpt2_txt'; did you mean gpt2_text"),
        ("gpt2_text", "200MiB", [], "nothing fits in 200 MiB: the least is linear.fused"),
        ("gpt2_text", "8GiB", ["--device", "cuda"], "nothing on cuda was measured"),
        ("gpt2_text", "8GiB", ["--dtype", "bfloat16"], "nothing in bfloat16 was measured"),
        ("llama3_8b", "8GiB", [], "nor one loss at two sizes or more"),
    ],
)
def test_no_pick_is_one_line_and_exit_1(pick, workload, memory, more, says) -> None:
    code, out, err = pick(MEASURED, workload, memory, *more)
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


def test_no_rows_exit_2_and_a_bad_size_is_said(pick, tmp_path, capsys) -> None:
    assert main(["pick", "--workload", "gpt2", "--memory", "8GiB", str(tmp_path)]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        pick(MEASURED, "gpt2_text", "8")
    assert "'8' is no size, as 8GiB or 512MiB is" in capsys.readouterr().err


def sizes(impl: str, ms: float, alpha: float, beta: float, **more: object):
    """A loss at two sizes of one workload, whose peak is alpha · N·V + beta · V·D bytes."""
    rows = []
    for name in ("gpt2_text@256", "gpt2_text"):
        tokens, hidden, vocab = shape(name)
        mib = (alpha * tokens * vocab + beta * vocab * hidden) / MIB
        rows += loss(impl, ms * tokens, mib, workload=name, **more)
    return rows


def test_what_was_not_measured_is_predicted_and_marked(pick) -> None:
    rows = sizes("linear.builtin", 1.0, 8, 4) + sizes("linear.chunked_vocab", 1.5, 0.5, 4)
    tokens, hidden, vocab = shape("llama3_8b@8192")
    builtin = (8 * tokens * vocab + 4 * vocab * hidden) / 2**30
    code, out, _ = pick(rows, "llama3_8b@8192", "12GiB")
    assert code == 0
    assert "linear.builtin:" in out
    assert f"peak {builtin:.2f} GiB, predicted by 8 · tokens · V + 4 · V · D bytes" in out
    assert "1,024 ms forward and backward at gpt2_text, the nearest size timed" in out
    _, out, _ = pick(rows, "llama3_8b@8192", "5GiB")
    assert "linear.chunked_vocab:" in out


def test_a_model_says_how_far_it_is_off_and_refuses_what_it_cannot_tell() -> None:
    exact = {(n, 768, 50257): 8.0 * n * 50257 + 4 * 50257 * 768 for n in (64, 256, 1024)}
    model = Model.fit(exact)
    assert (model.logits, model.weight) == pytest.approx((8, 4))
    assert model.off < 1e-9
    bent = Model.fit(exact | {(1024, 768, 50257): exact[1024, 768, 50257] * 1.2})
    assert 0.02 < bent.off < 0.2
    assert Model.fit({(64, 768, 50257): 1e8}) is None
    assert Model.fit({(64, 64, 100): 1e8, (128, 128, 100): 2e8}) is None  # the terms run together


def test_environments_are_not_mixed(pick) -> None:
    there = {"machine": "other", "device": "NVIDIA H100", "torch": "2.12"}
    rows = [
        *MEASURED,
        *loss("linear.fused", 1.0, 216, **there),
        *loss("linear.cce", 2.0, 100, **there),
    ]
    code, out, _ = pick(rows, "gpt2_text", "8GiB")
    assert code == 0
    assert re.findall(r"# (linear[\w.]+):", out) == ["linear.fused", "linear.logits.fused"]
    _, out, _ = pick(rows, "gpt2_text", "8GiB", "--device", "cuda")
    assert re.findall(r"# (linear[\w.]+):", out) == ["linear.fused"]
    # One size here and another there are no two sizes.
    apart = [
        row | ({"machine": "b"} if row["workload"] == "gpt2_text" else {})
        for row in sizes("linear.fused", 1, 8, 4)
    ]
    assert pick(apart, "llama3_8b@64", "8GiB")[0] == 1


def test_reports_knows_the_shapes_of_the_workloads() -> None:
    for name, workload in WORKLOADS.items():
        assert shape(name) == (workload.tokens, workload.hidden, workload.vocab)
        assert shape(f"{name}@7") == (7, workload.hidden, workload.vocab)
    assert shape("nothing") is None
    assert shape("gpt2@x") is None
