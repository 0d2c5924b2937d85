"""Measures losses: workloads, meters, asv suites, and the commands of ``python -m benchmarks``.

asv imports every module here in an environment that has ``impls`` but not ``reports``. So
``reports`` is imported inside the functions that use it.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
