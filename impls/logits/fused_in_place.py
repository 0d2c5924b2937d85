"""``logits.fused``, whose backward writes the gradient over the logits: no (N, V) tensor is made.

Forward leaves the logits as they are. After backward they are gone: a second backward, or another
function's that needs them, raises.
"""

from impls.logits.fused import RowLosses
from impls.loss import Support, check_call
from impls.reduction import distribution, reduce, result_dtype

support = Support(overwrites_input=True)


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
    check_call(input, target, weight, reduction, label_smoothing)
    q = distribution(target, weight, input.shape[1], input.dtype, ignore_index, label_smoothing)
    losses = RowLosses.apply(input, *q, softcap, z_loss, True)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
