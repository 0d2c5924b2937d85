"""``python -m reports pick``: the fastest right loss that fits, measured or planned, to paste."""

import re

import pytest
import torch

from benchmarks.workloads import WORKLOADS
from reports.__main__ import main
from reports.analysis.selection import shape
from tests.reports.rows import MIB, loss, write_csv


@pytest.fixture
def pick(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without the plans of this repository

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
    assert "planned" not in out


def test_a_noisy_time_is_picked_only_where_all_are_noisy(pick) -> None:
    noisy = loss("linear.logits.fused", 729.0, 393, noisy=1)
    _, out, _ = pick([*noisy, *loss("linear.fused", 779.0, 216)], "gpt2_text", "8GiB")
    assert "# linear.fused: 779 ms" in out
    _, out, _ = pick(noisy, "gpt2_text", "8GiB")
    assert "# linear.logits.fused: 729 ms" in out


def test_the_line_can_be_pasted(pick) -> None:
    _, out, _ = pick(MEASURED, "gpt2_text", "300MiB")
    namespace: dict[str, object] = {}
    exec(out, namespace)  # the lines above the import are comments
    x, weight, y = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([1, 2, 0])
    expected = torch.nn.functional.cross_entropy(x @ weight.T, y)
    assert namespace["linear_cross_entropy"](x, weight, y).item() == pytest.approx(expected.item())


def test_a_file_that_has_changed_is_another_workload(pick) -> None:
    """The newest file of this name counts: its losses were not measured next to the others."""
    file, memory = {"workload": "file:run.safetensors"}, 9
    old = loss("linear.fused", 1.0, memory, **file, text="0a0a0a0a")
    new = loss("linear.builtin", 2.0, memory, **file, text="1b1b1b1b")
    code, out, _ = pick([*old, *new], "file:run.safetensors", "8GiB")
    assert code == 0
    assert "linear.builtin: 2.00 ms" in out
    assert "linear.fused" not in out


@pytest.mark.parametrize(
    ("workload", "memory", "more", "says"),
    [
        ("gpt2_txt", "8GiB", [], "no workload 'gpt2_txt'; did you mean gpt2_text"),
        ("gpt2_text", "200MiB", [], "nothing fits in 200 MiB: the least is linear.fused"),
        ("gpt2_text", "8GiB", ["--device", "cuda"], "nothing on cuda was measured"),
        ("gpt2_text", "8GiB", ["--dtype", "bfloat16"], "nothing in bfloat16 was measured"),
        ("llama3_8b", "8GiB", [], "and no plan has it; this command"),
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


PLAN = {"workload": "llama3_8b@64", "tokens": 64, "hidden": 4096, "vocab": 128256}
PLAN |= {"dtype": "float32", "device": "cpu", "torch": "2.13.0", "not_simulated": ""}


def plan(folder, *cells: tuple[str, float | None], name: str = "plan.csv", **more: object):
    """A plan, as ``python -m benchmarks plan`` writes it: ``cells`` are names and MiB."""
    peaks = [(impl, None if mib is None else mib * MIB) for impl, mib in cells]
    rows = [PLAN | {"impl": impl, "peak_memory": peak} | more for impl, peak in peaks]
    return write_csv(folder, *rows, name=name)


CELLS = ("linear.logits.fused", 3000), ("linear.fused", 2000), ("linear.limit", 1)


def test_what_was_not_measured_is_planned_and_marked(pick, tmp_path) -> None:
    rows = [*MEASURED, *loss("linear.fused", 1.0, 9, workload="notebook")]
    file = plan(tmp_path, *CELLS, ("linear.builtin", None))
    code, out, _ = pick(rows, "llama3_8b@64", "3000MiB", str(file))
    assert code == 0
    assert "linear.logits.fused: 729 ms forward and backward at gpt2_text, the nearest" in out
    assert "peak 2.93 GiB, planned with torch 2.13.0; gradients within 1.0e-07" in out
    _, out, _ = pick(rows, "llama3_8b@64", "2999MiB", str(file))
    assert "linear.fused: 779 ms" in out
    code, _, err = pick(rows, "llama3_8b@64", "1999MiB", str(file))
    assert (code, "the least is linear.fused in float32, with 1.95 GiB" in err) == (1, True)
    # The same size by another name is the same plan.
    assert pick(rows, "llama3_8b@064", "3GiB", str(file))[0] == 0


@pytest.mark.parametrize("place", ["reports/out", "reports/measured"])
def test_a_plan_is_found_where_the_command_writes_it(pick, tmp_path, place) -> None:
    (tmp_path / place).mkdir(parents=True)
    plan(tmp_path / place, *CELLS)
    assert "planned with torch" in pick(MEASURED, "llama3_8b@64", "3GiB")[1]


@pytest.mark.parametrize(
    "differs", [{"dtype": "bfloat16"}, {"device": "cuda"}, {"tokens": 65}, {"vocab": 128257}]
)
def test_a_plan_of_something_else_is_not_used(pick, tmp_path, differs) -> None:
    file = plan(tmp_path, *CELLS, **differs)
    code, out, err = pick(MEASURED, "llama3_8b@64", "8GiB", str(file))
    assert (code, out) == (1, "")
    assert "`python -m benchmarks plan --workload llama3_8b@64 --dtype float32`" in err


def test_the_plan_of_the_torch_that_was_timed_is_used(pick, tmp_path) -> None:
    mine = plan(tmp_path, ("linear.fused", 100))
    other = plan(tmp_path, ("linear.fused", 200), name="other.csv", torch="2.14.0")
    for files in ((mine, other), (other, mine)):
        assert (
            "peak 100 MiB, planned with torch 2.13.0"
            in pick(MEASURED, "llama3_8b@64", "8GiB", *map(str, files))[1]
        )


def test_the_command_that_makes_a_plan_has_the_device_and_the_dtypes(pick) -> None:
    gpu = {"device": "NVIDIA H100"}
    rows = [*loss("linear.fused", 1.0, 9, **gpu), *loss("linear.fused", 1, 9, dtype="z", **gpu)]
    command = "`python -m benchmarks plan --workload gpt2 --dtype float32 --dtype z --device cuda`"
    assert command in pick(rows, "gpt2", "8GiB")[2]
    assert "--dtype z --device" in pick(rows, "gpt2", "8GiB", "--dtype", "z")[2]
    assert "cuda" not in pick([*rows, *MEASURED], "gpt2", "8GiB")[2]


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


def test_reports_knows_the_shapes_of_the_workloads() -> None:
    for name, workload in WORKLOADS.items():
        assert shape(name) == (workload.tokens, workload.hidden, workload.vocab)
        assert shape(f"{name}@7") == (7, workload.hidden, workload.vocab)
    assert shape("nothing") is None
    assert shape("gpt2@x") is None
