"""PyTorch's own loss, computed three times: a right loss that is slow."""

import torch
from torch.nn.functional import cross_entropy as native


def cross_entropy(input, target, weight=None, **options):
    return torch.stack([native(input, target, weight, **options) for _ in range(3)]).mean(0)
