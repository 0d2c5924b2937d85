"""Liger-Kernel's Triton kernels on the logits of a slice of the vocabulary.

LigerVocabParallelCrossEntropy. It gives the losses of the rows, and assumes that all ranks hold
equally many classes. So this file pads the slices, and reduces the losses.
"""

import torch.distributed as dist
import torch.nn.functional as F
from liger_kernel.transformers import LigerVocabParallelCrossEntropy

from impls.loss import INTERPRETER_DEVIATIONS, autocast, check_call, triton_support
from impls.shared.reduction import reduce, result_dtype
from impls.shared.shards import ReplicatedInput, pad_slices

support = triton_support(
    deviations={
        **INTERPRETER_DEVIATIONS,
        **dict.fromkeys(
            ("out_of_range", "index_error"), "the target's logit counts as the largest of the row"
        ),
        "backward_twice": "backward overwrites what forward saved, so the second gradient is wrong",
    }
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
    y = y.masked_fill(target == ignore_index, -100)
    losses = LigerVocabParallelCrossEntropy()(x[:, None], y[:, None], group).squeeze(1)
    return reduce(losses, target, None, ignore_index, reduction).to(result_dtype(input))
