"""Overwrites its input, clamps targets, smooths over V - 1 classes."""

import torch
import torch.nn.functional as F


class Overwrites(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, smoothing):
        value = F.cross_entropy(input, target, label_smoothing=smoothing)
        one_hot = F.one_hot(target, input.shape[1])
        input.data.copy_((input.softmax(1) - one_hot) / len(input))
        ctx.grad = input.data
        return value

    @staticmethod
    def backward(ctx, grad):
        return ctx.grad * grad, None, None


def cross_entropy(input, target, *, label_smoothing=0.0):
    vocab = input.shape[1]
    smoothing = label_smoothing * vocab / (vocab - 1)
    return Overwrites.apply(input, target.clamp(0, vocab - 1), smoothing)
