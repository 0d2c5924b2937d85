"""logits.native, but forward writes the gradient over the logits.

No (N, V) tensor is made. After forward the logits are gone, and a function whose backward needs
them raises. For "none", or if no gradient is wanted, forward leaves the logits as they are.
"""

from dataclasses import replace

from impls.kernels import kernel_for
from impls.logits import native
from impls.shared import gradient_in_forward

support = replace(native.support, overwrites_input=True)


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
    return gradient_in_forward.cross_entropy(kernel, input, target, weight, *options, in_place=True)
