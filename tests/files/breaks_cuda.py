"""A loss that, given a reduction that is none, breaks CUDA as an assertion in a kernel does."""

import torch
import torch.nn.functional as F

from impls.loss import Support, check_call

support = Support(devices=("cpu",), dtypes=("float32",))


def cross_entropy(input, target, *, reduction="mean"):
    if reduction == "average":
        torch.cuda.is_initialized = lambda: True
        torch.cuda.synchronize = asserted
        asserted()
    check_call(input, target, None, reduction, 0.0)
    return F.cross_entropy(input, target, reduction=reduction)


def asserted():
    raise RuntimeError("CUDA error: device-side assert triggered\nand more lines")
