"""``python -m benchmarks plan``: predicts what each loss needs at any size, without running it."""

import argparse
import csv
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import impls
from benchmarks import options
from benchmarks.environment.progress import track
from benchmarks.measure import memory, torch_compat
from benchmarks.measure.availability import (
    Unmeasurable,
    check_device,
    check_level,
    load_for,
    select_level,
    tensors,
)
from benchmarks.measure.references import REFERENCES, Reference
from benchmarks.measure.step import Step
from benchmarks.plan.fakes import Shapes, argument_bytes
from benchmarks.plan.gpus import GPUS
from benchmarks.plan.simulation import NotSimulated, predict
from benchmarks.ranks.pool import needs_ranks
from benchmarks.workloads import Workload, split_tokens, workload
from impls.loss import FUNCTIONS

PLAN_COLUMNS = [
    *("workload", "tokens", "hidden", "vocab", "ranks", "dtype", "device", "torch", "gpu"),
    *("impl", "arguments", "peak_memory", "saved_memory", "flops", "moved", "sent"),
    *("fits", "compute_ms", "memory_ms", "network_ms"),
    *("measured_peak_memory", "measured_saved_memory", "not_simulated"),
]

Row = dict[str, Any]


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    rows: list[Row] = []
    try:
        cells = [
            (sized(name, arguments.tokens), dtype)
            for name, dtype in itertools.product(arguments.workload, arguments.dtype)
        ]
        if arguments.check:
            check_device(arguments.device)
        left_out: dict[str, None] = {}
        losses = {dtype: chosen(arguments, dtype, left_out) for dtype in arguments.dtype}
        for reason in left_out:
            print(f"skipped: {reason}", file=sys.stderr)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, PLAN_COLUMNS)
            writer.writeheader()
            with world(arguments.ranks or 1):
                for size, dtype in cells:
                    for row in plan(size, dtype, losses[dtype], arguments):
                        writer.writerow(row)
                        rows.append(row)
    except options.USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        if rows:
            print(f"{render(rows)}\n\n{len(rows)} rows in {arguments.out}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA here: each loss is planned with the operations that it runs on the "
            "CPU. A loss that runs other operations on CUDA will need other amounts."
        )
    return 0


def sized(name: str, tokens: int | None) -> Workload:
    return workload(name if tokens is None else f"{split_tokens(name)[0]}@{tokens}")


def chosen(
    arguments: argparse.Namespace, dtype: str, left_out: dict[str, None]
) -> list[impls.Loss]:
    """The losses that are named, or all. Adds to ``left_out`` why a loss is left out.

    Raises ``Unmeasurable`` if a named loss cannot be planned.
    """
    losses = []
    for name in arguments.impl or impls.names():
        try:
            loss = load_for(name, dtype, arguments.device)
            if needs_ranks(loss.name) and arguments.ranks is None:
                raise Unmeasurable(f"{name} is planned with --ranks")
            losses.append(loss)
        except Unmeasurable as reason:
            if arguments.impl:
                raise
            left_out[str(reason)] = None
    return losses


@contextmanager
def world(ranks: int) -> Iterator[None]:
    """Make this process rank 0 of ``ranks``, whose collectives do nothing."""
    dist.init_process_group("fake", store=torch_compat.fake_store(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def plan(
    size: Workload, dtype: str, losses: list[impls.Loss], arguments: argparse.Namespace
) -> Iterator[Row]:
    """A row for each loss, level after level, and for the level's reference."""
    gpu = GPUS[arguments.gpu]
    for level in FUNCTIONS:
        group = select_level(losses, level)
        if not group:
            continue
        try:
            check_level(size, level)
            group = options.supporting(group, size, named=bool(arguments.impl))
        except Unmeasurable as reason:
            if arguments.impl:
                raise
            print(f"skipped: {reason}", file=sys.stderr)
            continue
        ranks = (arguments.ranks or 1) if level == "sharded" else 1
        argument_shapes = shapes(size, level, ranks)
        cell = {
            "workload": size.name,
            "tokens": size.tokens,
            "hidden": size.hidden,
            "vocab": size.vocab,
            "ranks": ranks,
            "dtype": dtype,
            "device": arguments.device,
            "torch": torch.__version__,
            "gpu": gpu.name,
            "arguments": argument_bytes(argument_shapes, dtype),
        }
        makers: dict[str, Callable[[Mapping[str, Tensor]], Step | Reference]] = {
            loss.name: functools.partial(step_with_options, loss, size.options) for loss in group
        }
        makers[REFERENCES[level].name] = REFERENCES[level]
        title = f"{size.name} {dtype}"
        for name, make in track(makers.items(), title, name=lambda item: item[0]):
            row = cell | {"impl": name}
            try:
                prediction = predict(make, argument_shapes, dtype, arguments.device)
            except NotSimulated as reason:
                yield row | {"not_simulated": str(reason)}
                continue
            fits = cell["arguments"] + prediction.peak_memory <= gpu.memory
            row |= asdict(prediction) | {"fits": fits} | gpu.least_times(prediction, dtype)
            if arguments.check and isinstance(make, functools.partial):
                given = tensors(size, level, dtype, arguments.device)
                row |= measured(make(given), arguments.device)
            yield row


def step_with_options(
    loss: impls.Loss, options: Mapping[str, Any], given: Mapping[str, Tensor]
) -> Step:
    return Step(loss, {**given, **options})


def shapes(size: Workload, level: str, ranks: int) -> Shapes:
    """The shapes of a loss's arguments on rank 0, whose slice is as large as any."""
    n, d, v = size.tokens, size.hidden, size.vocab
    vectors = {name: (v,) for name in size.vectors if name in size.needed_options(level)}
    if level == "logits":
        return {"input": (n, v), "target": (n,), **vectors}
    return {"input": (n, d), "linear_weight": (-(-v // ranks), d), "target": (n,), **vectors}


def measured(step: Step, device: str) -> Row:
    """The memory that the step takes when it runs, beside the prediction."""
    return {
        "measured_peak_memory": memory.peak_memory(step.forward_backward, device),
        "measured_saved_memory": memory.saved_memory(step.forward, device),
    }


def render(rows: list[Row]) -> str:
    """A table for each workload, dtype and level, sorted by memory."""
    import pandas as pd

    from reports.render.plans import render

    return render(pd.DataFrame(rows, columns=PLAN_COLUMNS))


DESCRIPTION = """\
Predict what the forward and backward of each loss need at any size: peak and saved
memory, matrix products, bytes moved and bytes sent, and the least time on a GPU that
each of them implies. Nothing is allocated or run."""
EXAMPLES = """\
examples:
  python -m benchmarks plan --workload gpt2_text@64
  python -m benchmarks plan --workload llama3_8b@8192 --dtype bfloat16 --device cuda
  python -m benchmarks plan --workload llama3_405b --tokens 1048576 --ranks 8 --gpu 'H200 SXM'
  python -m benchmarks plan --workload notebook --impl linear.fused --check"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plan",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    options.add(parser, "--impl")
    options.add(
        parser,
        "--workload",
        action="append",
        help=f"{options.OPTIONS['--workload']['help']} (repeatable; without it, gpt2_text)",
    )
    parser.add_argument("--tokens", type=count, metavar="N", help="tokens of every workload")
    parser.add_argument(
        "--ranks", type=count, metavar="K", help="plan the sharded losses too, on K GPUs"
    )
    options.add(
        parser, "--dtype", action="append", default=None, help="repeatable; without it, float32"
    )
    options.add(parser, "--device")
    parser.add_argument(
        "--gpu", default="H100 SXM", choices=GPUS, help="the GPU whose limits imply times"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="measure the memory too, if enough is free, and show the error of the plan",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/out/plan.csv"),
        metavar="FILE",
        help="the CSV to write",
    )
    arguments = parser.parse_args(argv)
    arguments.workload = arguments.workload or ["gpt2_text"]
    arguments.dtype = arguments.dtype or ["float32"]
    return arguments


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value
