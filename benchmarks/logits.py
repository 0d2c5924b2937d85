"""asv: the losses of logits."""

from benchmarks.common import Suite


class CPU(Suite):
    level = "logits"


class CUDA(Suite):
    level = "logits"
    device = "cuda"
