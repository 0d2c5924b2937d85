"""asv: the losses of a vocabulary that is split between two processes of this machine."""

from benchmarks.ranks import torchrun
from benchmarks.ranks.pool import Ranks
from benchmarks.ranks.worker import Rank
from benchmarks.suite import Numbers, Suite, for_asv, number_of

RANKS = 2


class CPUx2(Suite):
    level = "sharded"

    @for_asv(timeout=3600.0)
    def setup_cache(self):
        with Ranks(RANKS, timeout=3600.0) as ranks:
            return ranks.run(RANKS, measure_on_rank, self.params)[0]

    @for_asv(unit="bytes")
    def track_sent(self, numbers, *cell):
        return number_of(numbers, "sent", cell)

    @for_asv(unit="count")
    def track_collectives(self, numbers, *cell):
        return number_of(numbers, "collectives", cell)


def measure_on_rank(rank: Rank, k: int, params: list[list[str]]) -> Numbers:
    """What one rank measures, in lock step with the other: both get the same numbers."""
    with torchrun.in_step():
        return CPUx2().measure(params)
