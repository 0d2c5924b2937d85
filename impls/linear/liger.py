"""Liger-Kernel's Triton kernel on chunks of tokens, with gradients in forward.

Liger-Kernel's value is float32. It is converted to the dtype of PyTorch's value.
"""

from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

from impls.loss import INTERPRETER_DEVIATIONS, autocast, check_call, triton_support
from impls.shared.reduction import result_dtype

support = triton_support(
    deviations={
        **INTERPRETER_DEVIATIONS,
        "all_ignored": "the mean is 0, where F.cross_entropy's is nan",
        "empty": "raises ZeroDivisionError",
        "out_of_range": "reads and writes beyond the row of logits",
        "index_error": "reads and writes beyond the row of logits",
        "backward_twice": "the upstream gradient multiplies the second gradient twice",
        "frozen": "raises RuntimeError: linear_weight has no gradient unless input needs one",
    },
    cuda_deviations={
        "dtypes": "weight and bias gradients are summed over chunks of tokens in half precision",
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
