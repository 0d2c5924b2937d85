"""Quick timings while you work on a loss: ``pytest --benchmark-only --impl NAME``."""

import pytest

import impls
from benchmarks.environment import description
from benchmarks.measure.step import Step
from benchmarks.workloads import workload

WORKLOAD, DTYPE = "gpt2_text@64", "float32"


@pytest.mark.ranks  # no sharded loss: its time would be that of the sockets between processes
@pytest.mark.parametrize("metric", ["forward", "backward", "forward_backward"])
def test_speed(benchmark, loss: impls.Loss, metric: str) -> None:
    chosen = workload(WORKLOAD)
    step = Step(loss, chosen.tensors(loss.level, DTYPE))
    benchmark.group = f"{loss.level} {WORKLOAD} {metric}"
    cell = {"workload": WORKLOAD, "text": chosen.text_hash, "dtype": DTYPE, "metric": metric}
    benchmark.extra_info.update(description.describe("cpu"), impl=loss.name, **cell)
    if metric == "backward":
        run, setup = step.backward, lambda: ((step.forward(),), {})
    else:
        run, setup = getattr(step, metric), None
    benchmark.pedantic(run, setup=setup, rounds=15, warmup_rounds=3)
