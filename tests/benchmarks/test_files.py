"""Workloads from files: recordings and configs, what is refused, and what result files say."""

import hashlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

import impls
from benchmarks.__main__ import main
from benchmarks.compare import server
from benchmarks.environment.variables import PINNED_ALLOCATOR
from benchmarks.measure.availability import Unmeasurable, check_level
from benchmarks.measure.step import Step, describe_excess
from benchmarks.side_by_side import rounds
from benchmarks.workloads import UnknownWorkload, workload
from benchmarks.workloads.files import DEFAULTS, write_recording

pytest.importorskip("safetensors")

N, D, V = 6, 8, 40
LINEAR = {"input": (N, D), "linear_weight": (V, D), "linear_bias": (V,), "weight": (V,)}


def record(folder: Path, shapes: dict[str, tuple[int, ...]], **options: object) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {
        name: torch.rand(shape, generator=generator) for name, shape in shapes.items()
    }
    tensors["target"] = torch.arange(N)
    write_recording(folder / "run.safetensors", tensors, DEFAULTS | options)
    return folder / "run.safetensors"


def write(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("config", "hidden", "vocab", "softcap"),
    [
        ({"model_type": "llama", "hidden_size": 4096, "vocab_size": 128256}, 4096, 128256, None),
        (
            {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "vocab_size": 50257},
            768,
            50257,
            None,
        ),
        ({"model_type": "t5", "d_model": 512, "d_kv": 64, "vocab_size": 32128}, 512, 32128, None),
        (
            {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512}
            | {"vocab_size": 50272},
            *(512, 50272, None),
        ),
        (
            {"model_type": "gemma2", "hidden_size": 2304, "vocab_size": 256000}
            | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            *(2304, 256000, 30.0),
        ),
        (
            {"model_type": "gemma3", "vision_config": {"hidden_size": 1152}}
            | {"text_config": {"hidden_size": 2560, "vocab_size": 262208}}
            | {"final_logit_softcapping": None},
            *(2560, 262208, None),
        ),
    ],
)
def test_a_config_gives_the_shape(tmp_path, config, hidden, vocab, softcap) -> None:
    found = workload(f"config:{write(tmp_path, config)}")
    assert (found.tokens, found.hidden, found.vocab) == (256, hidden, vocab)
    assert found.options == ({} if softcap is None else {"softcap": softcap})
    assert found.name == f"config:{tmp_path.name}/config.json"
    more = workload(f"config:{tmp_path}/config.json@64")
    assert (more.tokens, more.name) == (64, f"{found.name}@64")


def test_configs_of_one_name_differ_by_their_hash(tmp_path) -> None:
    config = {"hidden_size": 16, "vocab_size": 40}
    small = workload(f"config:{write(tmp_path, config)}")
    same = workload(f"config:{write(tmp_path, config | {'num_hidden_layers': 2})}")
    capped = workload(f"config:{write(tmp_path, config | {'final_logit_softcapping': 30.0})}")
    assert small.text_hash == same.text_hash != capped.text_hash
    assert len(small.text_hash) == 8
    assert capped.tensors("linear", "bfloat16")["softcap"] == 30.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "config.json is no config"),
        ("{hidden", "config.json is no JSON"),
        ('{"vocab_size": 9}', "hidden_size or n_embd or d_model in "),
        ('{"hidden_size": 9, "vocab_size": "9"}', "no positive number at vocab_size in "),
        (None, "no file "),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, says) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnknownWorkload, match=says) as refused:
        workload(f"config:{path}")
    assert "\n" not in str(refused.value)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The exit code and stderr of side-by-side in this process, and the CSV that it wrote."""
    for name, value in PINNED_ALLOCATOR.items():  # else it would begin again with these
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0})

    def side_by_side(*arguments: str) -> tuple[int, str, Path]:
        out = tmp_path / "rows.csv"
        code = main([*arguments, "--pass", "forward_backward_unit", "--out", str(out)])
        return code, capsys.readouterr().err, out

    return side_by_side


@pytest.mark.parametrize(
    ("at", "impl", "says"),
    [
        ("@7", "linear.builtin", "run.safetensors has 6 tokens, not 7"),
        ("@0", "linear.builtin", "at least 1 token"),
        ("", "linear.builtin", "linear.builtin has no softcap, which the workload needs"),
        ("", "linear.torch_chunked", "linear.torch_chunked has no softcap, which"),
        ("", "logits.eager", "logits.eager has no softcap, which"),
    ],
)
def test_what_a_recording_lacks_or_a_loss_lacks_is_said(run, tmp_path, at, impl, says) -> None:
    path = record(tmp_path, LINEAR, softcap=2.0)
    code, err, out = run("--workload", f"file:{path}{at}", "--impl", impl)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
    assert not out.exists()


def test_a_file_that_is_no_recording_is_refused(tmp_path, monkeypatch) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(UnknownWorkload, match="is no safetensors file"):
        workload(f"file:{path}")
    save_file({"input": torch.zeros(2)}, path)
    with pytest.raises(UnknownWorkload, match=r"is no recording of benchmarks\.capture"):
        workload(f"file:{path}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UnknownWorkload, match="needs the package safetensors"):
        workload(f"file:{path}")


def test_logits_alone_have_no_other_level(run, tmp_path) -> None:
    path = record(tmp_path, {"input": (N, V)})
    code, err, out = run("--workload", f"file:{path}", "--impl", "linear.builtin")
    assert code == 2
    assert "file:run.safetensors has logits alone, so it has no level linear" in err
    assert not out.exists()
    with pytest.raises(Unmeasurable, match="linear_bias and weight, which is not split"):
        check_level(workload(f"file:{record(tmp_path, LINEAR)}"), "sharded")


def test_results_name_the_recording_and_its_hash(run, tmp_path) -> None:
    """All options at once: each loss here is right with them, so it has times."""
    path = record(
        *(tmp_path, LINEAR),
        **{"ignore_index": 2, "label_smoothing": 0.1, "reduction": "none"},
    )
    code, err, out = run("--workload", f"file:{path}@5", "--impl", "logits.eager")
    assert code == 0, err
    rows = pd.read_csv(out)
    assert set(rows["workload"]) == {"file:run.safetensors@5"}
    assert set(rows["text"]) == {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}
    assert str(tmp_path) not in out.read_text()
    timed = set(rows["impl"][rows["metric"] == "forward_backward_unit"])
    assert {"logits.eager", "logits.builtin", "logits.reference"} == timed


OPTIONS = {"softcap": 2.0, "z_loss": 0.1, "label_smoothing": 0.3, "ignore_index": 2}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("level", ["logits", "linear"])
def test_a_loss_that_drops_an_option_is_wrong(tmp_path, level: str, reduction: str) -> None:
    path = record(tmp_path, LINEAR, **OPTIONS, reduction=reduction)
    given = workload(f"file:{path}").tensors(level, "float32")
    loss = impls.load("logits.native" if level == "logits" else "linear.fused")
    step = Step(loss, given)
    expected = step.expected()
    budgets = step.budgets(expected, "float32")
    assert not describe_excess(zip(step.errors(expected), budgets, strict=True))
    for name in given.keys() - {"input", "linear_weight", "target"}:
        dropped = Step(loss, {other: value for other, value in given.items() if other != name})
        errors = dropped.errors(expected)
        assert describe_excess(zip(errors, budgets, strict=True)), f"{name} does not count"


def test_compare_replays_a_recording(tmp_path) -> None:
    path = record(tmp_path, LINEAR, **OPTIONS)
    asked = server.Worker(tmp_path, set())
    asked.given = {
        level: workload(f"file:{path}").tensors(level, "float32") for level in ("logits", "linear")
    }
    found = asked.bytes_and_errors("linear.fused", "bfloat16")
    assert found["errors"][0] <= found["budgets"][0]
    missing = asked.bytes_and_errors("logits.eager", "float32")["unmeasurable"]
    assert missing.startswith("logits.eager has no softcap, z_loss, which")


def test_plan_counts_the_vectors_of_a_recording(tmp_path, capsys) -> None:
    path, out = record(tmp_path, LINEAR, label_smoothing=0.1), tmp_path / "plan.csv"
    names = ("--impl", "linear.builtin", "--out", str(out))
    assert main(["plan", "--workload", f"file:{path}", "--check", *names]) == 0
    row = pd.read_csv(out).set_index("impl").loc["linear.builtin"]
    assert row["arguments"] == 4 * (N * D + V * D + 2 * V) + 8 * N
    assert row["saved_memory"] == row["measured_saved_memory"]
    capsys.readouterr()
    assert main(["plan", "--workload", f"file:{path}", "--impl", "linear.torch_chunked"]) == 2
    assert "linear.torch_chunked has no label_smoothing" in capsys.readouterr().err
