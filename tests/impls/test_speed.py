"""Quick timings while you work on a loss: ``pytest --benchmark-only --impl NAME``.

``tests/conftest.py`` pins the allocator, and prints each time as a multiple of builtin's.
"""

import pytest

import impls
from benchmarks.environment import description
from benchmarks.measure.step import Step
from benchmarks.side_by_side.sampler import Sampler
from benchmarks.workloads import workload
from reports.analysis.intervals import median_interval

WORKLOAD, DTYPE = "gpt2_text@64", "float32"
ROUNDS = 15


@pytest.mark.ranks  # no sharded loss: its time would be that of the sockets between processes
@pytest.mark.parametrize("metric", ["forward", "backward", "forward_backward"])
def test_speed(benchmark, record_property, loss: impls.Loss, metric: str) -> None:
    """Before each call of the loss, PyTorch's own loss is called and timed."""
    chosen = workload(WORKLOAD)
    tensors = chosen.tensors(loss.level, DTYPE)
    builtin = impls.load(f"{loss.level}.builtin")
    sampler = Sampler({"builtin": Step(builtin, tensors), "loss": Step(loss, tensors)}, "cpu")
    builtin_ms = []

    def setup():
        [sample] = sampler.take("builtin", metric)
        builtin_ms.append(sample.value)
        return [sampler.call_of("loss", metric)], {}

    benchmark.group = f"{loss.level} {WORKLOAD} {metric}"
    cell = {"workload": WORKLOAD, "text": chosen.text_hash, "dtype": DTYPE, "metric": metric}
    benchmark.extra_info.update(description.describe("cpu"), impl=loss.name, **cell)
    benchmark.pedantic(lambda call: call(), setup=setup, rounds=ROUNDS, warmup_rounds=3)
    if benchmark.disabled:
        return
    del builtin_ms[:-ROUNDS]  # of the warm-up
    pairs = zip(benchmark.stats.stats.data, builtin_ms, strict=True)
    ratio, low, high = median_interval([1e3 * seconds / base for seconds, base in pairs])
    benchmark.extra_info.update({"builtin_ms": builtin_ms, "× builtin": [ratio, low, high]})
    record_property("× builtin", f"{ratio:6.2f} [{low:.2f}, {high:.2f}]  {loss.name} {metric}")
