"""asv: the losses of a vocabulary of which two processes hold a slice each.

Each of them does what the suite of one process would, in lock step. What is asked of them and their
answer is in the times, a fraction of a millisecond.
"""

import functools
from collections.abc import Callable
from typing import Any

from benchmarks.measure import collectives
from benchmarks.measure.references import ShardedReference
from benchmarks.ranks import torchrun
from benchmarks.ranks.pool import Ranks
from benchmarks.ranks.worker import Rank
from benchmarks.suite import Suite

RANKS = 2


class _OneRank(Suite):
    level = "sharded"

    def track_sent(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, ShardedReference):
            return step.sent_bytes()
        return collectives.sent(step.forward_backward, self.device)[0]

    def track_collectives(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, ShardedReference):
            return step.collectives
        return collectives.sent(step.forward_backward, self.device)[1]

    track_sent.unit = "bytes"
    track_collectives.unit = "count"
    track_sent.version = track_collectives.version = "1"


@functools.cache
def ranks() -> Ranks:
    """They end with this process."""
    return Ranks(RANKS)


def on_rank(rank: Rank, k: int, benchmark: str, cell: tuple[str, ...]) -> Any:
    with torchrun.in_step():
        return getattr(_OneRank(), benchmark)(*cell)


def across(benchmark: Callable[..., Any]) -> Callable[..., Any]:
    """The same benchmark, of all ranks at once."""

    @functools.wraps(benchmark)
    def of_all(self, impl, workload, dtype):
        return ranks().run(RANKS, on_rank, benchmark.__name__, (impl, workload, dtype))[0]

    return of_all


class CPUx2(_OneRank):
    pass


for name in dir(_OneRank):
    if name.startswith(("time_", "track_")):
        setattr(CPUx2, name, across(getattr(_OneRank, name)))
