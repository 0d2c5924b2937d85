"""How implementations are measured: inputs, meters, the oracle, the asv suites, and ``python -m benchmarks``.

asv imports every module here in an environment that holds ``impls`` alone, so ``reports`` is imported
where it is used, inside functions.
"""
