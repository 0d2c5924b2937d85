"""A C++ kernel: forward makes the gradient in the time of a copy of the logits.

``impls.shared.gradient_in_forward`` says what forward and backward do.
"""

from impls.kernels import cross_entropy as kernel
from impls.loss import Support
from impls.shared import gradient_in_forward

kernel.check_available()
support = Support(devices=("cpu",))


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
    return gradient_in_forward.cross_entropy(kernel, input, target, weight, *options)
