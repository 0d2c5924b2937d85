"""asv: measures the losses of hidden states and a classifier's weight."""

import torch

from benchmarks.suite import Suite, for_asv


class CPU(Suite):
    level = "linear"

    @for_asv(timeout=3600.0)
    def setup_cache(self):
        return self.measure()


if torch.cuda.is_available():

    class CUDA(Suite):
        level = "linear"
        device = "cuda"

        @for_asv(timeout=3600.0)
        def setup_cache(self):
            return self.measure()
