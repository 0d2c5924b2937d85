"""How implementations are measured: inputs, oracle, meters, asv suites, ``python -m benchmarks``.

asv imports every module here in an environment that holds ``impls`` alone, so ``reports`` is
imported where it is used, inside functions.
"""
