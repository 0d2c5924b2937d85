"""Liger-Kernel's Triton kernel: forward writes the gradient over the logits."""

from liger_kernel.transformers.functional import liger_cross_entropy

from impls.loss import INTERPRETER_DEVIATIONS, check_call, triton_support
from impls.shared.reduction import result_dtype

support = triton_support(
    overwrites_input=True,  # https://github.com/linkedin/Liger-Kernel/issues/272
    deviations={
        **INTERPRETER_DEVIATIONS,
        "all_ignored": "the mean is 0, where F.cross_entropy's is nan",
        "empty": "raises RuntimeError",
        "strides": "if a row of logits is not contiguous, the gradient is the logits themselves",
        "index_error": "raises AssertionError, where F.cross_entropy raises IndexError",
        "backward_twice": "the upstream gradient multiplies the second gradient twice",
    },
)


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    losses = liger_cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return losses.to(result_dtype(input))
