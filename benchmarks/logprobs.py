"""asv: measures log-probabilities, as the mean of -log p over the tokens."""

import torch

from benchmarks.suite import Suite, for_asv


class CPU(Suite):
    level = "logprobs"

    @for_asv(timeout=3600.0)
    def setup_cache(self):
        return self.measure()


if torch.cuda.is_available():

    class CUDA(Suite):
        level = "logprobs"
        device = "cuda"

        @for_asv(timeout=3600.0)
        def setup_cache(self):
            return self.measure()
