"""A process that holds one revision of ``impls``, and measures when it is asked.

``python -P -m benchmarks.worker FOLDER DEVICE``; PYTHONPATH has the revision's folder, then this
project's. Requests come as lines of JSON on stdin, answers go as lines of JSON to stdout.
"""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

import impls
from benchmarks import meters
from benchmarks.environment import comparable
from benchmarks.step import Step


class Worker:
    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device
        self.steps: dict[str, Step] = {}
        self.random = random.Random()
        self.padding: torch.Tensor | None = None

    def step(self, impl: str) -> Step:
        if impl not in self.steps:
            loss = impls.load(impl)
            tensors = torch.load(self.folder / f"{loss.level}.pt", map_location=self.device)
            self.steps[impl] = Step(loss, tensors)
        return self.steps[impl]

    def environment(self) -> dict[str, Any]:
        return comparable(self.device)

    def exact(self, impl: str, dtype: str) -> dict[str, Any]:
        """What has no noise: bytes, and how far the gradients are off, and may be."""
        step = self.step(impl)
        expected = step.expected()
        return {
            "errors": step.errors(expected),
            "budgets": step.budgets(expected, dtype),
            "peak_memory": meters.peak_memory(step.forward_backward, self.device),
            "saved_memory": meters.saved_memory(step.forward, self.device),
        }

    def block(self, impl: str, pass_: str, calls: int, delay: float) -> dict[str, Any]:
        """Seconds of each of ``calls``, in each of which ``delay`` seconds are waited.

        The first call, not counted, brings the caches back that another process had.
        """
        step = self.step(impl)
        self.padding = None
        self.padding = torch.empty(2**18 + 64 * self.random.randrange(2**12), dtype=torch.uint8)
        self.call(step, pass_, 0.0)
        return {"seconds": [self.call(step, pass_, delay) for _ in range(calls)]}

    def call(self, step: Step, pass_: str, delay: float) -> float:
        made: Any = step.forward() if pass_ == "backward" else None

        def run() -> Any:
            result = step.backward(made) if pass_ == "backward" else getattr(step, pass_)()
            if delay:
                meters.synchronize(self.device)
                until = time.perf_counter() + delay
                while time.perf_counter() < until:
                    pass
            return result

        return meters.seconds(run, self.device)


def main(folder: str, device: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a loss prints is no answer
    worker = Worker(Path(folder), device)
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(worker, request.pop("do"))(**request)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
    finally:  # who asked ends this process by killing it: it is only here if that one was killed
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
