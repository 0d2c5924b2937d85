"""PyTorch's own chunked loss, F.linear_cross_entropy with default options.

With label smoothing torch 2.13 warns and computes without chunks. So it is no option here.
"""

import torch.nn.functional as F
from torch.nn import LinearCrossEntropyOptions

from impls.loss import Support, autocast, check_call

support = Support(
    deviations={
        "dtypes": "in bfloat16 and float16 the chunks' losses are summed in that dtype",
        "ignored_not_finite": "the value is nan if an ignored row is not finite",
        "index_error": "raises RuntimeError, where F.cross_entropy raises IndexError",
        "all_ignored": "if all rows are ignored the gradients are nan; F.cross_entropy's are 0",
        "autocast": "the value is bfloat16, where F.cross_entropy's is float32",
    }
)


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, weight, reduction, 0.0, linear_weight, linear_bias)
    return F.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        options=LinearCrossEntropyOptions(),
    )
