"""A kernel in C++, or CUDA C++: forward makes the gradient in the time of a copy of the logits.

``impls.shared.gradient_in_forward`` says what forward and backward do. The kernel
in CUDA C++ needs a Hopper GPU, and has neither smoothing nor softcap. Else the kernel of
``logits.triton`` runs.
"""

import torch

from impls.kernels import cross_entropy as cpp
from impls.kernels import kernel_for
from impls.loss import Support
from impls.shared import gradient_in_forward

if not torch.cuda.is_available():  # CUDA needs no C++ compiler
    cpp.check_available()
support = Support(cuda_dtypes=("float32", "bfloat16", "float16"))


def cross_entropy(
    input,
    target,
    weight=None,
    *,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    softcap=None,
    z_loss=0.0,
):
    options = (ignore_index, reduction, label_smoothing, softcap, z_loss)
    kernel = kernel_for(input)
    return gradient_in_forward.cross_entropy(kernel, input, target, weight, *options)
