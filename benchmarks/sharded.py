"""asv: measures the losses of a vocabulary that is split between two processes.

Both ranks run the benchmark of ``_OneRank`` in lock step. The times contain the request to the
ranks and their answer, a fraction of a millisecond.
"""

import functools
from collections.abc import Callable
from typing import Any

from benchmarks.measure import collectives
from benchmarks.measure.references import ShardedReference
from benchmarks.ranks import torchrun
from benchmarks.ranks.pool import Ranks
from benchmarks.ranks.worker import Rank
from benchmarks.suite import Suite, for_asv

RANKS = 2


class _OneRank(Suite):
    level = "sharded"

    @for_asv(unit="bytes")
    def track_sent(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, ShardedReference):
            return step.sent_bytes()
        return collectives.sent(step.forward_backward, self.device)[0]

    @for_asv(unit="count")
    def track_collectives(self, impl, workload, dtype):
        step = self.step(impl, workload, dtype)
        if isinstance(step, ShardedReference):
            return step.collectives
        return collectives.sent(step.forward_backward, self.device)[1]


@functools.cache
def ranks() -> Ranks:
    """The ranks, started once. They end with this process."""
    return Ranks(RANKS)


def run_on_rank(rank: Rank, k: int, benchmark: str, cell: tuple[str, ...]) -> Any:
    with torchrun.in_step():
        return getattr(_OneRank(), benchmark)(*cell)


def across_ranks(benchmark: Callable[..., Any]) -> Callable[..., Any]:
    """The benchmark, run on all ranks at once. Rank 0 gives the result."""

    @functools.wraps(benchmark)
    def run(self, impl, workload, dtype):
        return ranks().run(RANKS, run_on_rank, benchmark.__name__, (impl, workload, dtype))[0]

    return run


class CPUx2(_OneRank):
    pass


for name in dir(_OneRank):
    if name.startswith(("time_", "track_")):
        setattr(CPUx2, name, across_ranks(getattr(_OneRank, name)))
