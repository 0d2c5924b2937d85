"""logits.native, but forward writes the gradient over the logits.

No (N, V) tensor is made. After forward the logits are gone, and a function whose backward needs
them raises. For "none", or if no gradient is wanted, forward leaves the logits as they are.
"""

from dataclasses import replace

from impls.logits import native

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
    return native.native_cross_entropy(input, target, weight, *options, in_place=True)
