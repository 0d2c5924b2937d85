"""torchtune's CEWithChunkedOutputLoss: F.linear on 8 chunks of tokens, float32 one at a time.

The logits of all chunks are kept, as torchtune's models do.
"""

import torch.nn.functional as F
from torchtune.modules.loss import CEWithChunkedOutputLoss

from impls.loss import Support, autocast, check_call
from impls.shared.reduction import result_dtype

support = Support(dtypes=("float32", "bfloat16", "float16"))


def linear_cross_entropy(input, linear_weight, target, *, ignore_index=-100):
    input, linear_weight = autocast(input, linear_weight)
    check_call(input, target, None, "mean", 0.0, linear_weight)
    loss = CEWithChunkedOutputLoss(ignore_index=ignore_index)
    chunks = input[None].chunk(loss.num_output_chunks, dim=1)  # of one sequence
    logits = [F.linear(chunk, linear_weight) for chunk in chunks]
    return loss(logits, target[None]).to(result_dtype(input))
