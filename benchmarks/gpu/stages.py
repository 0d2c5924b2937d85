"""Defines the stages, the most important first: each has a command, a time limit and a result."""

from dataclasses import dataclass, replace
from pathlib import Path

# The cells to measure side by side: stage, level, workload, dtype. Each cell has its own process,
# which frees its memory for the next cell. An error that breaks CUDA costs one cell. Times that
# others publish are of (16384, 131072) logits in float32.
CELLS = {
    "cuda": (
        ("logits", "logits", "llama3_8b@8192", "bfloat16"),
        ("linear", "linear", "llama3_8b@8192", "bfloat16"),
        ("float32", "logits", "bench_131k", "float32"),
        ("logits", "logits", "gpt2_text@4096", "bfloat16"),
        ("logprobs", "logprobs", "llama3_8b@8192", "bfloat16"),
        ("linear", "linear", "gemma2_2b@8192", "bfloat16"),
        ("float32", "logits", "llama3_8b@8192", "float32"),
    ),
    "cpu": (
        ("logits", "logits", "gpt2_text@64", "bfloat16"),
        ("linear", "linear", "tinystories_1m", "bfloat16"),
        ("float32", "logits", "tinystories_1m", "float32"),
        ("logprobs", "logprobs", "tinystories_1m", "bfloat16"),
    ),
}
# The losses of a rehearsal on a CPU: few, and none that compiles. None: all losses.
REHEARSED = {
    "cuda": None,
    "cpu": {
        "gate": ["logits.eager", "logits.builtin"],
        "logits": ["logits.builtin", "logits.eager"],
        "linear": ["linear.builtin", "linear.chunked_vocab"],
        "logprobs": ["logprobs.builtin", "logprobs.chunked"],
    },
}


@dataclass(frozen=True)
class Stage:
    """A command, as arguments of Python, and what is expected of it."""

    name: str
    title: str
    command: tuple[str, ...]
    limit: float  # seconds
    result: Path | None = None  # the file that it writes or adds to


def stages(device: str, out: Path) -> list[Stage]:
    """All stages on ``device``, in the order in which they run, with results in ``out``."""
    on = ("--device", device)
    compare = ("-m", "benchmarks", "compare", ".", ".", *on, "--impl", "logits.builtin")
    compared, numbers = out / "page" / "compare.csv", out / "numbers.csv"  # "page" reads both
    measured, history = ("-m", "benchmarks", "history", "HEAD"), out / "history.csv"
    return [
        child("benchmarks.gpu.machine", "machine", out / "machine.json", 90.0, *on),
        child("benchmarks.gate", "gate", out / "gate.csv", 270.0, *on, *named(device, "gate")),
        *(side_by_side(device, numbers, *cell) for cell in CELLS[device]),
        Stage(
            *("asv", "asv"),
            (*measured, *on, *named(device, "logits"), "--out", str(history)),
            *(150.0, history),
        ),
        Stage(
            *("compare", "compare"),
            (*compare, "--budget", "20", "--out", str(compared)),
            *(90.0, compared),
        ),
        Stage(
            *("page", "page"),
            ("-m", "reports", str(numbers), "--out", str(out / "page")),
            *(60.0, out / "page" / "index.html"),
        ),
    ]


def side_by_side(
    device: str, numbers: Path, name: str, level: str, workload: str, dtype: str
) -> Stage:
    """The stage that measures all losses of a level at one workload in one dtype."""
    cell = (level, "--device", device, "--dtype", dtype, "--workload", workload)
    title = f"{name} {workload}"
    stage = child("benchmarks.gpu.level", title, numbers, 110.0, *cell, *named(device, level))
    return replace(stage, name=name)


def child(module: str, title: str, result: Path, limit: float, *options: str) -> Stage:
    """The stage that runs ``module`` and has the last part of its name."""
    command = ("-m", module, *options, "--out", str(result))
    return Stage(module.rpartition(".")[2], title, command, limit, result)


def named(device: str, what: str) -> tuple[str, ...]:
    """The options that name the losses of a rehearsal; none on a GPU."""
    chosen = REHEARSED[device]
    return () if chosen is None else tuple(f"--impl={name}" for name in chosen[what])
