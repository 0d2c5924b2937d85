"""What our log-probabilities share: the check of a call, sums and gradients that hold for p = 0.

With logits x and p = softmax(x), a row with the target y has

    log p_y = x_y - log Σ_k exp(x_k)        d log p_y/dx_j = [j = y] - p_j
    H = -Σ_k p_k log p_k                    dH/dx_j = -p_j (log p_j + H)
"""

import math

import torch

from impls.loss import autocast, check_call
from impls.shared.reduction import check_range


def checked(input, linear_weight, target, temperature, linear_bias):
    """The input, weight and bias, in the dtype of ``torch.autocast`` where it is on.

    Raises ``ValueError`` as ``impls.loss.check_call`` does, or for a temperature that is not a
    positive number. Raises ``IndexError`` as ``impls.shared.reduction.check_range`` does.
    """
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, None, "none", 0.0, linear_weight, linear_bias)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite: got {temperature}")
    check_range(target, len(linear_weight), ignore_index=0)  # 0 is in range, so nothing is ignored
    return input, linear_weight, linear_bias


def finite(log_p):
    """log p, but the lowest finite number in place of -inf, so that p log p is 0 where p is 0."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)


def gradient_beside_target(log_p, entropy, upstream, entropy_upstream):
    """-u p - v p (log p + H), for (N, V) log p, and H, u and v (N, 1).

    This is the logits' gradient, but for the target's column: u is to be added there. Without v,
    which may be None, H is not read.
    """
    p = log_p.exp()
    grad = -upstream * p
    if entropy_upstream is None:
        return grad
    # In this order nothing overflows where log p is the lowest finite number.
    return grad - entropy_upstream * (p * (finite(log_p) + entropy))
