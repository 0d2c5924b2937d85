"""Shows progress on stderr: a bar on a terminal, a line now and then elsewhere."""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Update = Callable[[int, str], None]  # with the number of items done and the current item's name

REDRAWN = 0.1  # seconds from one drawing of the bar to the next, if the name stays the same
LINES = 10.0  # seconds from one line to the next


def track(
    items: Iterable[Item],
    title: str,
    total: int | None = None,
    name: Callable[[Item], str] = lambda _: "",
) -> Iterator[Item]:
    """Yield ``items``. Show how many of ``total`` are done, the item's name, and the time left.

    What is printed to stderr meanwhile appears above the bar. The bar is drawn before each item,
    and never by a thread, which would disturb what is measured.
    """
    total = len(items) if isinstance(items, Sized) else total
    is_drawn = sys.stderr.isatty() and importlib.util.find_spec("rich")
    with (bar if is_drawn else lines)(title, total) as update:
        for done, item in enumerate(items):
            update(done, name(item))
            yield item


@contextmanager
def bar(title: str, total: int | None) -> Iterator[Update]:
    from rich import progress
    from rich.console import Console

    columns = [progress.TextColumn("{task.description}"), progress.BarColumn()]
    columns += [progress.MofNCompleteColumn(), progress.TimeRemainingColumn(compact=True)]
    with progress.Progress(
        *columns,
        progress.TextColumn("{task.fields[name]}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        speed_estimate_period=math.inf,
    ) as shown:
        shown.add_task(title, total=total, name="")
        [task] = shown.tasks
        drawn = -math.inf

        def update(done: int, name: str) -> None:
            nonlocal drawn
            is_due = name != task.fields["name"] or time.monotonic() > drawn + REDRAWN
            shown.update(task.id, completed=done, name=name, refresh=is_due)
            drawn = time.monotonic() if is_due else drawn

        yield update


@contextmanager
def lines(title: str, total: int | None) -> Iterator[Update]:
    start = written = time.monotonic()

    def update(done: int, name: str) -> None:
        nonlocal written
        now = time.monotonic()
        if now < written + LINES:
            return
        written = now
        of_total = f" of {total}" if total else ""
        left = f"{(now - start) * (total / done - 1):.0f} s left" if total and done else ""
        facts = [f"{title}: {done}{of_total} done", left, name]
        print(", ".join(filter(None, facts)), file=sys.stderr, flush=True)

    yield update
