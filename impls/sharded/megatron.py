"""Megatron-Core's fused loss, which all-reduces the maximum, then both sums at once.

fused_vocab_parallel_cross_entropy. It assumes that all ranks hold equally many classes, so this
file pads the slices. It gives the losses of the rows; Megatron masks and reduces them as this file
does. It rounds each gradient to bfloat16, so it has no other dtype here.
"""

import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

from impls.loss import Support, autocast, check_call
from impls.shared.reduction import reduce, result_dtype
from impls.shared.shards import ReplicatedInput, pad_slices

support = Support(
    dtypes=("bfloat16",),
    deviations={
        "empty": "raises ValueError",
        **dict.fromkeys(
            ("out_of_range", "index_error"), "the target's logit counts as the largest of the row"
        ),
    },
)


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    group=None,
    linear_bias=None,
    ignore_index=-100,
    reduction="mean",
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, None, reduction, 0.0, linear_weight, linear_bias)
    group = group or dist.group.WORLD
    x = F.linear(ReplicatedInput.apply(input, group), linear_weight, linear_bias)  # (N, V_r)
    x, y = pad_slices(x, target, linear_weight, group)
    losses = fused_vocab_parallel_cross_entropy(x, y, group)
    return reduce(losses, target, None, ignore_index, reduction).to(result_dtype(input))
