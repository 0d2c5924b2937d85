"""OLMo-core's loss: float32 logits, F.cross_entropy and, with z_loss, logsumexp."""

from olmo_core.nn.functional import cross_entropy_loss

from impls.loss import Support, check_call
from impls.shared.reduction import result_dtype

support = Support(
    dtypes=("float32", "bfloat16", "float16"),
    deviations={"softcap_and_z_loss": "with reduction='none' an ignored row has a z-loss"},
)


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean", z_loss=0.0):
    check_call(input, target, None, reduction, 0.0)
    value, z = cross_entropy_loss(
        input,
        target,
        ignore_index=ignore_index,
        reduction=reduction,
        compute_z_loss=z_loss != 0,
        z_loss_multiplier=z_loss,
    )
    return (value if z is None else value + z).to(result_dtype(input))
