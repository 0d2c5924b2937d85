"""Hugging Face transformers' default: float32 logits, then F.cross_entropy.

ForCausalLMLoss, with the labels shifted beforehand.
"""

from transformers.loss.loss_utils import ForCausalLMLoss

from impls.loss import Support, check_call
from impls.shared.reduction import result_dtype

support = Support(dtypes=("float32", "bfloat16", "float16"))


def cross_entropy(input, target, *, ignore_index=-100):
    check_call(input, target, None, "mean", 0.0)
    value = ForCausalLMLoss(
        input, None, input.shape[1], ignore_index=ignore_index, shift_labels=target
    )
    return value.to(result_dtype(input))
