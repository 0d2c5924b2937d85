"""From scratch: log p_y = x_y - log Σ exp(x), its gradient one_hot - p, and the entropy.

With hidden states h, temperature T, logits x = (h Wᵀ + b) / T and p = softmax(x), a row with the
target y has

    log p_y = x_y - log Σ_k exp(x_k)        d log p_y/dx_j = [j = y] - p_j
    H = -Σ_k p_k log p_k                    dH/dx_j = -p_j (log p_j + H)

Backward multiplies the two by their upstream gradients u and v, and adds them up to g = dloss/dx.
The temperature divides the logits, so it divides each gradient once:

    dh = g W / T        dW = gᵀ h / T        db = Σ_n g_n / T
"""

import torch
import torch.nn.functional as F

from impls.shared.logprobs import checked, finite
from impls.shared.reduction import accumulation_dtype, first_order


class LogprobsAndEntropies(torch.autograd.Function):
    """Hidden states (N, D), weight (V, D), bias (V,), y (N,) and T to log p_y (N,) and H (N,)."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, y, temperature):
        x = F.linear(input, linear_weight, linear_bias).to(accumulation_dtype(input.dtype))
        x = x / temperature  # (N, V)
        m = x.amax(1, keepdim=True)  # exp(x) may overflow, exp(x - m) does not; p is the same
        log_s = (x - m).exp().sum(1, keepdim=True).log()  # (N, 1), s = Σ_k exp(x_k - m)
        log_p = x - m - log_s  # not x - (m + log_s), which rounding can make positive
        entropy = -(log_p.exp() * finite(log_p)).sum(1)
        ctx.save_for_backward(input, linear_weight, linear_bias, y, log_p, entropy)
        ctx.temperature = temperature
        return log_p.gather(1, y[:, None]).squeeze(1), entropy

    @staticmethod
    @first_order
    def backward(ctx, u, v):
        input, linear_weight, linear_bias, y, log_p, entropy = ctx.saved_tensors
        u, v, entropy = u[:, None], v[:, None], entropy[:, None]  # (N, 1)
        p = log_p.exp()
        g = -u * p - v * (p * (finite(log_p) + entropy))  # (N, V)
        g.scatter_add_(1, y[:, None], u)
        g /= ctx.temperature
        grad_bias = None if linear_bias is None else g.sum(0).to(input.dtype)
        g = g.to(input.dtype)
        return g @ linear_weight, g.T @ input, grad_bias, None, None


def token_logprobs(
    input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None
):
    input, linear_weight, linear_bias = checked(
        input, linear_weight, target, temperature, linear_bias
    )
    both = LogprobsAndEntropies.apply(input, linear_weight, linear_bias, target, temperature)
    return both if entropy else both[0]
