"""PyTorch's own functions: F.linear makes all (N, V) logits, then F.log_softmax and gather."""

import torch.nn.functional as F

from impls.shared.logprobs import checked
from impls.shared.reduction import accumulation_dtype


def token_logprobs(
    input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None
):
    input, linear_weight, linear_bias = checked(
        input, linear_weight, target, temperature, linear_bias
    )
    x = F.linear(input, linear_weight, linear_bias).to(accumulation_dtype(input.dtype))
    if temperature != 1:
        x = x / temperature
    log_p = F.log_softmax(x, 1)  # (N, V)
    of_target = log_p.gather(1, target[:, None]).squeeze(1)
    if not entropy:
        return of_target
    p = log_p.exp()
    return of_target, -(p * log_p.masked_fill(p == 0, 0)).sum(1)  # where p is 0, 0 · -inf is nan
