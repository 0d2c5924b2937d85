"""PyTorch's own loss, torch.nn.functional.cross_entropy."""

import torch.nn.functional as F

from impls.loss import Support, check_call

support = Support(
    cpu_deviations={
        "confident": "in half precision p is rounded before 1 is subtracted",
    },
)


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    return F.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
