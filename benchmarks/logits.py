"""asv: measures the losses of logits."""

import torch

from benchmarks.suite import Suite, for_asv


class CPU(Suite):
    level = "logits"

    @for_asv(timeout=3600.0)
    def setup_cache(self):
        return self.measure()


if torch.cuda.is_available():

    class CUDA(Suite):
        level = "logits"
        device = "cuda"

        @for_asv(timeout=3600.0)
        def setup_cache(self):
            return self.measure()
