"""Lines to paste: imports, and commands that measure a cell again."""

import re

import pandas as pd
import pytest

from benchmarks.side_by_side.cli import parse
from benchmarks.suite import PROFILES
from reports.commands import import_line, reproduce
from tests.reports.rows import tidy


@pytest.mark.parametrize(
    ("impl", "function"),
    [
        ("linear.logits.eager", "linear_cross_entropy"),
        ("linear.fused(filter_eps=1e-9)", "linear_cross_entropy"),
        ("linear.fused", "linear_cross_entropy"),
        ("logits.eager", "cross_entropy"),
        ("logprobs.eager", "token_logprobs"),
    ],
)
def test_every_kind_of_name_has_a_line(impl, function) -> None:
    namespace: dict[str, object] = {}
    exec(import_line(impl), namespace)
    assert callable(namespace[function])


def test_commands_measure_the_cell_again() -> None:
    of = pd.Series(tidy(impl="linear.logits.eager", workload="gpt2_text@256:a.txt", source="x.csv"))
    assert reproduce(of) == (
        "python -m benchmarks --workload gpt2_text@256 --text a.txt --dtype float32 "
        "--impl linear.builtin --impl logits.eager"
    )
    of["workload"] = "file:run.safetensors@64"
    assert "--workload file:run.safetensors@64 --dtype" in reproduce(of)
    for impl in ("logits.fused", "linear.reference", "linear.fused(filter_eps=6e-5)"):
        of = pd.Series(tidy(impl=impl, source="x.csv", allocator="default", dtype="bfloat16"))
        words = reproduce(of).replace("'", "").split()[3:]
        found = parse(words)
        assert (found.workload, found.dtype, found.allocator) == (
            "gpt2_text",
            "bfloat16",
            "default",
        )
        assert found.impl[-1] == (impl if "reference" not in impl else "linear.builtin")


def test_a_sharded_loss_is_measured_again_on_as_many_ranks() -> None:
    command = "torchrun --nproc-per-node 4 -m benchmarks --workload gpt2_text --dtype float32"
    for impl, device, more in (
        ("sharded.eager", "cpu", " --impl sharded.eager"),
        ("sharded.eager", "NVIDIA H100", " --device cuda --impl sharded.eager"),
        ("sharded.reference", "cpu", ""),
    ):
        of = pd.Series(tidy(impl=impl, device=f"{device} × 4", source="x.csv"))
        assert reproduce(of) == command + more


@pytest.mark.parametrize("profile", ["quick", "regular", "large"])
def test_asvs_command_names_a_profile_that_has_the_cell(profile) -> None:
    for workload in PROFILES[profile][0]:
        for dtype in PROFILES[profile][1]:
            of = pd.Series(tidy(workload=workload, dtype=dtype, source="asv"))
            command = reproduce(of)
            named = re.match(r"BENCHMARK_PROFILE=(\w+) ", command)
            workloads, dtypes = PROFILES[named[1] if named else "quick"]
            assert workload in workloads
            assert dtype in dtypes
            pattern = re.search('--bench "(.*)"', command)[1]
            assert re.search(
                pattern, f"logits.CPU.time_forward('logits.eager', '{workload}', '{dtype}')"
            )
            assert command.endswith("aaaaaaaaaa^!")
