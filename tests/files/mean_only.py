"""PyTorch's mean, for a caller who needs no option: the signature has none."""

import torch.nn.functional as F

from impls.loss import check_call


def cross_entropy(input, target):
    check_call(input, target, None, "mean", 0.0)
    return F.cross_entropy(input, target)
