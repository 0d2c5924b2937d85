"""asv: the losses of hidden states and a classifier's weight."""

from benchmarks.common import Suite


class CPU(Suite):
    level = "linear"


class CUDA(Suite):
    level = "linear"
    device = "cuda"
