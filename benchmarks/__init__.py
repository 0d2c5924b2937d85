"""How implementations are measured: workloads, meters, asv suites, ``python -m benchmarks``.

asv imports every module here in an environment that holds ``impls`` alone, so ``reports`` is
imported where it is used, inside functions.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
