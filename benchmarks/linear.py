"""asv: measures the losses of hidden states and a classifier's weight."""

import torch

from benchmarks.suite import Suite


class CPU(Suite):
    level = "linear"


if torch.cuda.is_available():

    class CUDA(Suite):
        level = "linear"
        device = "cuda"
