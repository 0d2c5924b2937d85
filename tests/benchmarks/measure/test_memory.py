"""Memory is counted to the byte, the same on every run."""

import functools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import impls
from benchmarks import ROOT
from benchmarks.measure import memory
from benchmarks.measure.references import REFERENCES
from benchmarks.measure.step import Step
from benchmarks.workloads import workload

LOGITS = 32 * 50257 * 4  # bytes of float32 logits for 32 tokens


@functools.cache
def step(name: str) -> Step:
    loss = impls.load(name)
    return Step(loss, workload("gpt2_text@32").tensors(loss.level, "float32"))


def test_counts_allocations_exactly() -> None:
    def run() -> torch.Tensor:
        a = torch.empty(1000, dtype=torch.uint8)
        b = torch.empty(5000, dtype=torch.uint8)
        del a
        c = torch.empty(300, dtype=torch.uint8)
        del b
        return c

    assert memory.peak_memory(run, "cpu") == 6000
    assert memory.saved_memory(run, "cpu") == 300


def test_counting_imports_no_compiler() -> None:
    """That takes seconds, of each process that counts."""
    code = """if True:
        import sys, torch
        from benchmarks.measure import memory
        print(memory.peak_memory(lambda: torch.empty(100, dtype=torch.uint8), "cpu"))
        print("torch._inductor" in sys.modules)
    """
    counts = [sys.executable, "-c", code]
    run = subprocess.run(counts, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["100", "False"]


def test_what_was_held_before_does_not_count() -> None:
    held = [torch.empty(1 << 20, dtype=torch.uint8)]

    def run() -> None:
        held.clear()
        held.append(torch.empty(1 << 20, dtype=torch.uint8))

    assert {memory.peak_memory(run, "cpu") for _ in range(10)} == {1 << 20}


@pytest.mark.ranks(2)
def test_the_same_bytes_on_every_run(loss: impls.Loss) -> None:
    [device] = loss.support.devices
    one = Step(loss, workload("notebook").tensors(loss.level, "float32", device))
    one.forward_backward()  # what it compiles, it compiles here
    peaks = {memory.peak_memory(one.forward_backward, device) for _ in range(2)}
    saved = {memory.saved_memory(one.forward, device) for _ in range(2)}
    assert len(peaks) == len(saved) == 1


def test_builtin_holds_three_times_the_logits() -> None:
    """log_softmax saves its result; backward makes two more of its size."""
    peak = memory.peak_memory(step("logits.builtin").forward_backward, "cpu")
    assert 3 * LOGITS <= peak < 3 * LOGITS + 1000


def test_chunked_vocab_makes_no_second_logits_in_forward() -> None:
    chunked = step("logits.chunked_vocab")
    assert memory.peak_memory(chunked.forward, "cpu") < 0.3 * LOGITS
    assert memory.saved_memory(chunked.forward, "cpu") < 0.01 * LOGITS


def test_linear_chunked_vocab_never_holds_all_logits() -> None:
    chunked = step("linear.chunked_vocab")
    assert memory.peak_memory(chunked.forward, "cpu") < 0.3 * LOGITS
    gradients = REFERENCES["linear"](chunked.arguments).gradient_bytes()
    assert memory.peak_memory(chunked.forward_backward, "cpu") < gradients + 0.3 * LOGITS


@pytest.mark.parametrize("name", ["logprobs.chunked", "logprobs.fused"])
def test_log_probabilities_never_hold_all_logits(name: str) -> None:
    """Forward keeps a few numbers of each row. Backward makes the gradients and some logits."""
    narrow = replace(workload("gpt2_text@900"), hidden=16)
    one = Step(impls.load(name), narrow.tensors("logprobs", "float32"))
    logits, gradients = 900 * 50257 * 4, REFERENCES["logprobs"](one.arguments).gradient_bytes()
    assert memory.saved_memory(one.forward, "cpu") < 900 * 100
    assert memory.peak_memory(one.forward_backward, "cpu") < gradients + 0.4 * logits


def test_logits_fused_makes_the_gradient_and_no_more() -> None:
    fused = step("logits.fused")
    assert LOGITS <= memory.peak_memory(fused.forward_backward, "cpu") < 1.01 * LOGITS
    with torch.no_grad():
        assert memory.peak_memory(fused.forward, "cpu") < 0.01 * LOGITS


def test_logits_fused_in_place_makes_no_logits_at_all() -> None:
    assert memory.peak_memory(step("logits.fused_in_place").forward_backward, "cpu") < LOGITS / 100


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_fused_holds_its_gradients_and_a_chunk_of_logits(dtype: str) -> None:
    peaks = []
    for tokens in (600, 1200):
        # Narrow, as a CPU without bfloat16 of its own takes minutes for products of 768.
        narrow = replace(workload(f"gpt2_text@{tokens}"), hidden=16)
        tensors = narrow.tensors("linear", dtype)
        fused = Step(impls.load("linear.fused"), tensors)
        gradients = REFERENCES["linear"](tensors).gradient_bytes()
        peaks.append(memory.peak_memory(fused.forward_backward, "cpu") - gradients)
        assert memory.saved_memory(fused.forward, "cpu") < 1.01 * gradients
    assert max(peaks) < 66 * 2**20
    assert peaks[1] < 1.34 * peaks[0]  # chunks are 300 and 400 tokens


def test_linear_fused_makes_no_gradients_where_none_are_wanted() -> None:
    with torch.no_grad():
        assert memory.peak_memory(step("linear.fused").forward, "cpu") < 1.01 * LOGITS
