"""asv: measures the losses of logits."""

import torch

from benchmarks.suite import Suite


class CPU(Suite):
    level = "logits"


if torch.cuda.is_available():

    class CUDA(Suite):
        level = "logits"
        device = "cuda"
