"""Tables for a terminal: one number a cell, as many columns as fit."""

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reports.analysis.selection import (
    SORTED_BY,
    TOTAL,
    cells,
    half_widths,
    level_of,
    measured,
    multiples,
    run,
    title,
)
from reports.render.tables import error, interval, number

MEBIBYTE = 2**20
PASSES = {
    TOTAL: "forward +\nbackward",
    "forward_backward": "forward +\nbackward",
    "forward": "forward",
    "backward": "backward",
    "forward_backward_unit": "forward +\nbackward",
}
NOISY = "~"  # in front of a time


def show(rows: pd.DataFrame, console: Console | None = None) -> None:
    """Print a table for each level, workload, dtype and run, in the width of the terminal."""
    console = console or Console(highlight=False)
    for cell in cells(rows):
        console.print()
        console.print(table(cell, console.width))
        console.print(Text(run(cell), style="dim"))
    for line in legend(rows):
        console.print(Text(line, style="dim"))


def legend(rows: pd.DataFrame) -> Iterator[str]:
    """What the columns and marks of ``rows`` mean."""
    yield (
        "× builtin: the time divided by the time of PyTorch's own loss. ±: half of its 95 % "
        "interval, for any run on this machine. × reference: divided by the time to copy the "
        "logits, or of the matrix products alone. error: the relative error of the gradients, "
        "against float64. peak MiB: what forward and backward allocate."
    )
    if rows["noisy"].any():
        yield f"{NOISY} noisy: the time did not pass its checks, though it was measured for longer."
    failed = sorted(rows.loc[rows["metric"] == "failed", "impl"].unique())
    if failed:
        yield f"Failed while measured: {', '.join(failed)}. The output of the run has the reason."


def table(cell: pd.DataFrame, width: int) -> Table:
    """The losses of one level, workload, dtype and run, the fastest first.

    The fastest loss that is not noisy is bold.
    """
    values = measured(cell)
    main = next((name for name in (TOTAL, *SORTED_BY) if values[name].notna().any()), None)
    noisy = set(values.index[values["noisy"]])
    level = level_of(str(values.index[0]))
    columns = {"loss": [_short(str(impl)) for impl in values.index]}
    columns |= dict(_columns(cell, values, main, level, noisy))
    out = Table(box=box.SIMPLE_HEAD, title=escape(title(cell)), title_justify="left")
    room = width - 1
    kept: list[str] = []
    for name, texts in columns.items():
        room -= max(map(len, [*name.split("\n"), *texts])) + 3
        if room < 0 and len(kept) >= 4:
            break
        kept.append(name)
        out.add_column(name, justify="left" if name == "loss" else "right", no_wrap=True)
    losses = [impl for impl in values.index if not str(impl).endswith(".reference")]
    timed = [impl for impl in losses if main and pd.notna(values.at[impl, main])]
    fastest = next((impl for impl in timed if impl not in noisy), None)
    for n, impl in enumerate(values.index):
        style = "bold" if impl == fastest else "dim" if impl not in losses else ""
        out.add_row(*(escape(columns[name][n]) for name in kept), style=style)
    return out


def _columns(
    cell: pd.DataFrame, values: pd.DataFrame, main: str | None, level: str, noisy: set[str]
) -> Iterator[tuple[str, list[str]]]:
    """Header and texts of each column that has numbers, the most important first."""
    if main is not None:
        marks = [NOISY if impl in noisy else "" for impl in values.index]
        times = zip(marks, values[main], strict=True)
        yield f"{PASSES[main]}, ms", [mark + number(value) for mark, value in times]
        for base in ("builtin", "reference"):
            name = f"{level}.{base}"
            if name not in values.index:
                continue
            mark = NOISY if name in noisy else ""
            ratios = multiples(cell, values, name)[main].items()
            yield f"×\n{base}", [(mark if impl != name else "") + number(x) for impl, x in ratios]
            widths = half_widths(cell, values, name, main)
            if base == "builtin" and widths.notna().any():
                yield "±", [number(width) for width in widths]
    yield from _numbers(values, "peak_memory", "peak\nMiB", MEBIBYTE)
    if values["error"].notna().any():
        yield "error", [error(value) for value in values["error"]]
    for name in ("forward", "backward"):
        if name != main:
            yield from _numbers(values, name, f"{name},\nms")
    yield from _numbers(values, "saved_memory", "saved\nMiB", MEBIBYTE)
    yield from _numbers(values, "sent", "sent\nMiB", MEBIBYTE)
    yield from _numbers(values, "communication", "communi-\ncation, ms")
    if values["overlap"].notna().any():
        ends = zip(values["overlap_low"], values["overlap_high"], strict=True)
        yield "overlap", [interval(low, high) for low, high in ends]
    yield from _numbers(values, "launch", "launch,\nms")
    yield from _numbers(values, "reserved_memory", "reserved\nMiB", MEBIBYTE)
    yield from _numbers(values, "first_call", "first\ncall, s")


def _numbers(
    values: pd.DataFrame, metric: str, name: str, scale: float = 1
) -> Iterator[tuple[str, list[str]]]:
    if values[metric].notna().any():
        yield name, [number(value / scale) for value in values[metric]]


def _short(impl: str) -> str:
    """The name without its level, which the title has; of a long name the end."""
    name = impl.partition(".")[2] or impl
    return name if len(name) <= 28 else f"…{name[-27:]}"
