"""QuACK's CuTe kernels on chunks of tokens, with gradients in forward.

It takes only "mean" and "sum", and only a multiple of 8 tokens.
"""

from quack.linear_cross_entropy import chunked_linear_cross_entropy

from impls.loss import Support, autocast, check_call
from impls.shared.reduction import result_dtype

support = Support(("cuda",), ("bfloat16", "float16"))


def linear_cross_entropy(input, linear_weight, target, *, ignore_index=-100, reduction="mean"):
    input, linear_weight = autocast(input, linear_weight)
    check_call(input, target, None, reduction, 0.0, linear_weight)
    losses = chunked_linear_cross_entropy(
        input, linear_weight, target, ignore_index=ignore_index, reduction=reduction
    )
    return losses.to(result_dtype(input))
