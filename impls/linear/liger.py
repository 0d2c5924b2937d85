"""Liger-Kernel's fused linear loss: its Triton kernel on chunks of tokens, gradients in forward.

The value, float32, is given PyTorch's dtype.
"""

from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

from impls.loss import UNTRACEABLE, autocast, check_call, triton_support
from impls.shared.reduction import result_dtype

support = triton_support(
    deviations={
        **UNTRACEABLE,
        "all_ignored": "the mean is 0, torch's is nan",
        "empty": "raises ZeroDivisionError",
        "out_of_range": "reads and writes beyond the row of logits",
        "backward_twice": "the second gradient is multiplied by the upstream one again",
        "frozen": "raises RuntimeError: linear_weight has no gradient unless input needs one",
    },
    cuda_deviations={
        "dtypes": "gradients of weight and bias are summed over chunks of tokens in half precision",
    },
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
    label_smoothing=0.0,
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, weight, reduction, label_smoothing, linear_weight, linear_bias)
    losses = liger_fused_linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return losses.to(result_dtype(input))
