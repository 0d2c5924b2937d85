"""Apple's cut cross entropy: Triton kernels on CUDA, torch.compile on CPU.

The package is apple/ml-cross-entropy. On CUDA its kernels never write logits to memory, and leave
out gradients below ``filter_eps``. With None they leave out nothing. Its value is float32. It is
converted to the dtype of PyTorch's value.
"""

import torch
from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

from impls.loss import Support, autocast, check_call
from impls.shared.compile import raised_recompile_limit
from impls.shared.reduction import result_dtype

negative = {"out_of_range": "a negative target is taken for a class, counted from the last"}
support = Support(
    dtypes=("float32", "bfloat16", "float16"),
    cuda_dtypes=("bfloat16", "float16"),
    deviations={
        "index_error": "raises RuntimeError, where F.cross_entropy raises IndexError",
        **(negative if torch.__version__ < "2.13" else {}),  # torch.compile's fault
    },
    cuda_deviations={
        "deterministic": "the order in which programs add to a gradient varies, and so do its bits",
        "dtypes": "rows of linear_weight whose gradients are all below filter_eps get none",
        "many_chunks": "the error of linear_weight's gradient grows with the number of tokens",
        "sizes": "with one class the value is not 0",
        "strides": "raises AssertionError if linear_weight's columns are not contiguous",
    },
)


def linear_cross_entropy(
    input, linear_weight, target, *, ignore_index=-100, reduction="mean", filter_eps="high"
):
    input, linear_weight = autocast(input, linear_weight)
    check_call(input, target, None, reduction, 0.0, linear_weight)
    with raised_recompile_limit():  # its functions are fullgraph: a ninth kind of tensors raises
        losses = cut_cross_entropy(
            input,
            linear_weight,
            target,
            ignore_index=ignore_index,
            reduction=reduction,
            filter_eps=filter_eps,
            impl="cce" if input.is_cuda else "torch_compile",
        )
    return losses.to(result_dtype(input))
