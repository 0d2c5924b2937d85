"""flash-linear-attention's Triton kernel on chunks of tokens, with gradients in forward.

The package is fla-core. Its function gives the sum for each reduction but "mean", so there is no
``reduction`` here. There is no softcap: Triton's interpreter lacks the tanh that it calls.
"""

from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss

from impls.loss import autocast, check_call, triton_support
from impls.shared.reduction import result_dtype

support = triton_support(
    deviations={
        "all_ignored": "the mean is 0, where F.cross_entropy's is nan",
        "empty": "raises ZeroDivisionError",
        **dict.fromkeys(
            ("out_of_range", "index_error"),
            "the target's logit counts as 0, so the loss is the logsumexp",
        ),
        "backward_twice": "the upstream gradient multiplies the second gradient twice",
    }
)


def linear_cross_entropy(
    input, linear_weight, target, *, linear_bias=None, ignore_index=-100, label_smoothing=0.0
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, None, "mean", label_smoothing, linear_weight, linear_bias)
    value = fused_linear_cross_entropy_loss(
        input,
        target,
        linear_weight,
        linear_bias,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return value.to(result_dtype(input))
