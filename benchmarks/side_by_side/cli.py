"""``python -m benchmarks``: measures losses side by side, now, on this machine."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

import impls
from benchmarks import options
from benchmarks.environment.description import describe
from benchmarks.environment.variables import restart
from benchmarks.measure import memory
from benchmarks.measure.availability import (
    Unmeasurable,
    check_device,
    check_timeable,
    select_level,
    tensors,
)
from benchmarks.measure.step import PASSES
from benchmarks.options import (
    USER_ERRORS,
    append_rows,
    chosen_losses,
    open_for_append,
    supporting,
)
from benchmarks.ranks import torchrun
from benchmarks.ranks.pool import needs_ranks
from benchmarks.side_by_side import rounds
from benchmarks.side_by_side.failures import DeviceLost, first_line
from benchmarks.side_by_side.rows import MORE_COLUMNS, Row, with_interval
from benchmarks.workloads import Workload, workload

TORCHRUN = "torchrun --nproc-per-node K -m benchmarks"


def main(argv: list[str]) -> int:
    if torchrun.is_first():
        return run(argv)
    # All ranks refuse the same, and the first rank says why. torchrun ends all ranks when one
    # fails, so the others must not fail before the first rank has printed its line.
    with torchrun.quiet(), suppress(SystemExit):
        run(argv)
    return 0


def run(argv: list[str]) -> int:
    arguments = parse(argv)
    restart(arguments.allocator, [sys.executable, "-m", "benchmarks", *argv])
    if not torchrun.is_first():
        arguments.out = Path(os.devnull)
    torch.set_float32_matmul_precision("highest")  # NVIDIA's containers may allow TF32
    try:
        check_timeable()
        check_device(arguments.device)
        chosen = workload(arguments.workload, arguments.text)
        losses = losses_to_measure(arguments.impl, arguments.dtype, arguments.device, chosen)
        open_for_append(arguments.out)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    together = torchrun.group(arguments.device) if torchrun.is_launched() else nullcontext()
    try:
        with together:
            return run_levels(arguments, chosen, losses)
    finally:
        if arguments.out.is_file() and not arguments.out.stat().st_size:
            arguments.out.unlink()  # nothing was measured


def run_levels(arguments: argparse.Namespace, chosen: Workload, losses: list[impls.Loss]) -> int:
    """Measure level after level, print the table, and return the exit code."""
    import pandas as pd

    from reports.readers.schema import COLUMNS, whole
    from reports.render.tables import show

    cell = {
        "workload": chosen.name,
        "text": chosen.text_hash,
        "dtype": arguments.dtype,
        **describe(arguments.device, torchrun.world_size() if torchrun.started else None),
    }
    rows: list[Row] = []
    code = 0
    try:
        for level in impls.loss.FUNCTIONS:
            if not (group := select_with_builtin(losses, level, chosen)):
                continue
            try:
                measured = level_rows(arguments, chosen, group)
                whole_rows = (cell | row for row in measured)
                rows.extend(append_rows(arguments.out, whole_rows, [*COLUMNS, *MORE_COLUMNS]))
            except Unmeasurable as reason:
                print(f"skipped: {reason}", file=sys.stderr)
            except torch.OutOfMemoryError as error:  # raised by what all losses need
                print(f"{level} ended early: {first_line(error)}", file=sys.stderr)
                code = 1
    except DeviceLost as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # not in ``benchmarks.__main__``, where all ranks would print it
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        if rows:
            show(whole(pd.DataFrame(rows), "side by side"))
            print(f"\n{len(rows)} rows added to {arguments.out}")
    return code or (0 if rows else 2)


def level_rows(
    arguments: argparse.Namespace, chosen: Workload, group: list[impls.Loss]
) -> Iterator[Row]:
    """The rows of one level's losses. Raises ``Unmeasurable`` if free memory is too small."""
    dtype, device = arguments.dtype, arguments.device
    memory.free_cache(device)  # after the level before
    inputs = tensors(chosen, group[0].level, dtype, device)
    measured = rounds.measure(group, inputs, dtype, device, arguments.passes)
    yield from map(with_interval, measured)


def losses_to_measure(
    named: list[str], dtype: str, device: str, chosen: Workload
) -> list[impls.Loss]:
    """The losses that are ``named``, or all. Sharded losses need torchrun, the others must not.

    Raises ``Unmeasurable`` if a named loss cannot be measured so.
    """
    launched = torchrun.is_launched()
    fitting = [name for name in impls.names() if needs_ranks(name) == launched]
    if not named and not launched:
        sharded = ", ".join(filter(needs_ranks, impls.names()))
        print(f"skipped: {sharded}, which {TORCHRUN} measures", file=sys.stderr)
    losses = chosen_losses(named, dtype, device, fitting)
    for loss in losses:
        if needs_ranks(loss.name) != launched:
            how = "not" if launched else "only"
            raise Unmeasurable(f"{loss.name} is {how} measured by {TORCHRUN}")
    return supporting(losses, chosen, named=bool(named))


DESCRIPTION = """\
Measure losses side by side, now, on this machine: forward, backward, both, peak memory,
saved memory and error. The losses take turns, round after round, next to a reference.
`python -m benchmarks --help` lists the other commands."""
EXAMPLES = """\
examples:
  python -m benchmarks
  python -m benchmarks --impl linear.fused --impl my_loss.py --workload gpt2_text@256
  python -m benchmarks --workload llama3_8b@8192 --dtype bfloat16 --device cuda
  python -m benchmarks --workload file:run.safetensors --dtype bfloat16
  torchrun --nproc-per-node 2 -m benchmarks --workload notebook"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=options.HelpFormatter,
    )
    options.add(parser, "--impl")
    options.add(parser, "--workload", default="gpt2_text")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="your own text for gpt2_text and gpt2_trained"
    )
    options.add(parser, "--dtype")
    options.add(parser, "--device")
    options.add(parser, "--pass")
    parser.add_argument(
        "--allocator",
        default="pinned",
        choices=("pinned", "default"),
        help="glibc's allocator: told to keep large blocks, or with its own settings",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("reports/measured/local.csv"),
        metavar="FILE",
        help="the CSV to add rows to",
    )
    arguments = parser.parse_args(argv)
    arguments.passes = options.with_total(arguments.passes) or PASSES
    if arguments.text is not None and not arguments.text.is_file():
        parser.error(f"no file {arguments.text}")
    return arguments


def select_with_builtin(losses: list[impls.Loss], level: str, chosen: Workload) -> list[impls.Loss]:
    """The losses to measure at ``level``, and the builtin loss, to which tables compare them."""
    group = select_level(losses, level)
    if group and level != "sharded" and f"{level}.builtin" not in [loss.name for loss in group]:
        builtin = impls.load(f"{level}.builtin")
        if set(chosen.needed_options(level)) <= set(builtin.options):
            group.insert(0, builtin)
    return group
