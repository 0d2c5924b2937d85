"""F.linear, then F.cross_entropy (builtin) through torch.compile."""

import torch

from impls.linear import builtin
from impls.loss import check_call
from impls.reduction import check_targets

# With fullgraph, what cannot be compiled raises, rather than run uncompiled under this name.
compiled = torch.compile(  # type: ignore[call-overload]  # torch's stub lacks recompile_limit
    builtin.linear_cross_entropy, fullgraph=True, recompile_limit=64
)


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
):
    check_call(input, target, weight, reduction, label_smoothing, linear_weight, linear_bias)
    check_targets(target, len(linear_weight), ignore_index)
    return compiled(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
