"""Its gradients are zero."""

import torch
import torch.nn.functional as F


class Zeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target):
        ctx.save_for_backward(input)
        return F.cross_entropy(input, target)

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(ctx.saved_tensors[0]), None


def cross_entropy(input, target):
    return Zeros.apply(input, target)
