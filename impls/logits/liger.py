"""Liger-Kernel's Triton kernel: loss and gradient in one pass, written over the logits."""

from liger_kernel.transformers.functional import liger_cross_entropy

from impls.loss import UNTRACEABLE, check_call, triton_support
from impls.shared.reduction import result_dtype

support = triton_support(
    overwrites_input=True,  # https://github.com/linkedin/Liger-Kernel/issues/272
    deviations={
        **UNTRACEABLE,
        "all_ignored": "the mean is 0, torch's is nan",
        "empty": "raises RuntimeError",
        "strides": "logits whose rows are not contiguous come back as their own gradient",
        "out_of_range": "raises AssertionError, where F.cross_entropy raises IndexError",
        "backward_twice": "the second gradient is multiplied by the upstream one again",
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
