"""``python -m benchmarks plan``: what each implementation would need at any size, without running.

Each limit implies a time on a named GPU that no implementation with as many operations, or as many
bytes moved or sent, can beat: flops / its dense peak, bytes moved / its memory's bandwidth, bytes
sent / what its links carry one way. ``gpus.csv`` has these, from the data sheets.
"""

import argparse
import csv
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import impls
from benchmarks import options
from benchmarks.measure import memory, torch_compat
from benchmarks.measure.availability import (
    Unmeasurable,
    check_device,
    load_for,
    select_level,
    tensors,
)
from benchmarks.measure.references import REFERENCES, Reference
from benchmarks.measure.step import Step
from benchmarks.plan.simulation import NotSimulated, Prediction, Shapes, argument_bytes, predict
from benchmarks.ranks.pool import needs_ranks
from benchmarks.workloads import WORKLOADS, Workload, workload
from impls.loss import FUNCTIONS

COLUMNS = [
    *("workload", "tokens", "hidden", "vocab", "ranks", "dtype", "device", "torch", "gpu"),
    *("impl", "arguments", "peak_memory", "saved_memory", "flops", "moved", "sent"),
    *("fits", "compute_ms", "memory_ms", "network_ms"),
    *("measured_peak_memory", "measured_saved_memory", "not_simulated"),
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # bytes
    bandwidth: float  # bytes of its memory a second
    link: float  # bytes a second to other GPUs, one way
    flops: dict[str, float]  # a second, of dense matrix products, for each dtype

    def limits(self, found: Prediction, dtype: str) -> dict[str, float]:
        """The milliseconds that each limit implies."""
        return {
            "compute_ms": 1e3 * found.flops / self.flops[dtype],
            "memory_ms": 1e3 * found.moved / self.bandwidth,
            "network_ms": 1e3 * found.sent / self.link,
        }


def _gpus() -> dict[str, Gpu]:
    with Path(__file__).with_name("gpus.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dtypes = ("float64", "float32", "bfloat16", "float16")
    return {
        row["name"]: Gpu(
            row["name"],
            memory=float(row["memory_gib"]) * 2**30,
            bandwidth=float(row["bandwidth_gb_s"]) * 1e9,
            link=float(row["link_gb_s"]) * 1e9,
            flops={dtype: float(row[dtype]) * 1e12 for dtype in dtypes},
        )
        for row in rows
    }


GPUS = _gpus()


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
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            with world(arguments.ranks or 1):
                for found, dtype in cells:
                    for row in plan(found, dtype, losses[dtype], arguments):
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
            "There is no CUDA here: these are the steps that each takes on the CPU. One that asks "
            "where it is, and does otherwise on CUDA, will need otherwise."
        )
    return 0


def sized(name: str, tokens: int | None) -> Workload:
    return workload(name if tokens is None else f"{name.partition('@')[0]}@{tokens}")


def chosen(
    arguments: argparse.Namespace, dtype: str, left_out: dict[str, None]
) -> list[impls.Loss]:
    """Those named, or else all that there are; why, where one is ``left_out``."""
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
    """This process as rank 0 of ``ranks``, whose collectives do nothing."""
    dist.init_process_group("fake", store=torch_compat.fake_store(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def plan(
    found: Workload, dtype: str, losses: list[impls.Loss], arguments: argparse.Namespace
) -> Iterator[Row]:
    """A row for each loss, level after level, and for the level's reference."""
    gpu = GPUS[arguments.gpu]
    for level in FUNCTIONS:
        group = select_level(losses, level)
        if not group:
            continue
        ranks = (arguments.ranks or 1) if level == "sharded" else 1
        of_shape = shapes(found, level, ranks)
        cell = {
            "workload": found.name,
            "tokens": found.tokens,
            "hidden": found.hidden,
            "vocab": found.vocab,
            "ranks": ranks,
            "dtype": dtype,
            "device": arguments.device,
            "torch": torch.__version__,
            "gpu": gpu.name,
            "arguments": argument_bytes(of_shape, dtype),
        }
        makers: dict[str, Callable[[Mapping[str, Tensor]], Step | Reference]] = {
            loss.name: functools.partial(Step, loss) for loss in group
        }
        makers[REFERENCES[level].name] = REFERENCES[level]
        with tqdm(makers.items(), desc=f"{found.name} {dtype}", leave=False, disable=None) as bar:
            for name, make in bar:
                bar.set_postfix_str(name)
                row = cell | {"impl": name}
                try:
                    prediction = predict(make, of_shape, dtype, arguments.device)
                except NotSimulated as reason:
                    yield row | {"not_simulated": str(reason)}
                    continue
                fits = cell["arguments"] + prediction.peak_memory <= gpu.memory
                row |= asdict(prediction) | {"fits": fits} | gpu.limits(prediction, dtype)
                if arguments.check and isinstance(make, functools.partial):
                    given = tensors(found, level, dtype, arguments.device)
                    row |= measured(make(given), arguments.device)
                yield row


def shapes(found: Workload, level: str, ranks: int) -> Shapes:
    """Of a loss's arguments; of the ranks, the first has as large a slice as any."""
    n, d, v = found.tokens, found.hidden, found.vocab
    if level == "logits":
        return {"input": (n, v), "target": (n,)}
    return {"input": (n, d), "linear_weight": (-(-v // ranks), d), "target": (n,)}


def measured(step: Step, device: str) -> Row:
    return {
        "measured_peak_memory": memory.peak_memory(step.forward_backward, device),
        "measured_saved_memory": memory.saved_memory(step.forward, device),
    }


def render(rows: list[Row]) -> str:
    """A table for each workload, dtype and level, the least memory first."""
    import pandas as pd

    from reports.render.plans import render

    return render(pd.DataFrame(rows, columns=COLUMNS))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plan",
        description="Memory, matrix products, and bytes moved and sent, of each implementation's "
        "forward and backward at any size, and the time that each implies on a GPU. Nothing is "
        "allocated or run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add(parser, "--impl")
    options.add(parser, "--workload", action="append", help=f"{', '.join(WORKLOADS)} (repeatable)")
    parser.add_argument("--tokens", type=count, metavar="N", help="of every workload")
    parser.add_argument(
        "--ranks", type=count, metavar="K", help="plan the sharded losses too, over K GPUs"
    )
    options.add(parser, "--dtype", action="append", default=None, help="repeatable")
    options.add(parser, "--device")
    parser.add_argument("--gpu", default="H100 SXM", choices=GPUS, help="whose limits imply times")
    parser.add_argument(
        "--check",
        action="store_true",
        help="measure the memory too, which must be free, and show by how much the plan is off",
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
