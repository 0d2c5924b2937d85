"""QuACK's CuTe kernels: forward and backward each read the logits once."""

from quack.cross_entropy import cross_entropy as quack_cross_entropy

from impls.loss import Support, check_call
from impls.shared.reduction import result_dtype

support = Support(
    ("cuda",),
    ("float32", "bfloat16", "float16"),
    deviations={
        "autocast": "raises DSLRuntimeError, as in half precision",
        "dtypes": "raises DSLRuntimeError in half precision where V is 37",
        "precise_lse": "the log-sum-exp is one float32 number: the gradient has its rounding",
        "strides": "raises ValueError for some strides of the rows",
    },
)


def cross_entropy(input, target, weight=None, *, ignore_index=-100, reduction="mean"):
    check_call(input, target, weight, reduction, 0.0)
    losses = quack_cross_entropy(
        input, target, weight=weight, ignore_index=ignore_index, reduction=reduction
    )
    return losses.to(result_dtype(input))
