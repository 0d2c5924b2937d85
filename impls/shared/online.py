"""Online log-sum-exp: the sums of rows whose logits are seen a slice of the vocabulary at a time.

For a row x and the classes j seen so far, three numbers are enough:

    m = max_j x_j        s = Σ_j exp(x_j - m)        t = Σ_j b_j (x_j - m)

b_j is what label smoothing puts on class j (``impls.shared.reduction``). A slice that raises m to
m' turns s into s exp(m - m') and t into t - (m' - m) Σ_j b_j; then its own terms are added. At the
end, log Σ_j exp(x_j) is m + log s. (Milakov & Gimelshein 2018, Online normalizer calculation for
softmax.)
"""

import torch
import torch.nn.functional as F

from impls.shared.reduction import accumulation_dtype, locate

CHUNK = 4096  # classes in a slice


def slices(vocab):
    """The slices of V classes, in order."""
    return (slice(start, start + CHUNK) for start in range(0, vocab, CHUNK))


def logits_of_slices(input, linear_weight, linear_bias, y, temperature=1.0):
    """For each slice of the vocabulary: the slice, its logits (N, chunk), column and inside.

    column (N, 1) is a target's column in the slice; inside (N, 1) is whether the slice holds it.
    The caller may overwrite the logits.
    """
    for part in slices(len(linear_weight)):
        bias = None if linear_bias is None else linear_bias[part]
        x = F.linear(input, linear_weight[part], bias).to(accumulation_dtype(input.dtype))
        if temperature != 1:
            x /= temperature
        column, inside = locate(y, part.start, x.shape[1])
        yield part, x, column[:, None], inside[:, None]


def gradients_of_slices(slices, input, linear_weight, linear_bias, needed, dtype):
    """The gradients of input, weight and bias, from the logits' gradients of the slices.

    ``slices`` gives each slice of the vocabulary with its gradient (N, chunk), in any dtype. The
    input's gradient is summed in ``dtype``. A gradient that is not ``needed`` is None.
    """
    for_input, for_weight, for_bias = needed
    grad_input = torch.zeros_like(input, dtype=dtype) if for_input else None
    grad_weight = torch.empty_like(linear_weight) if for_weight else None
    grad_bias = torch.empty_like(linear_bias) if for_bias else None
    for part, g in slices:
        if for_bias:
            grad_bias[part] = g.sum(0)
        g = g.to(input.dtype)
        if for_input:
            grad_input += g @ linear_weight[part]
        if for_weight:
            torch.mm(g.T, input, out=grad_weight[part])
    return grad_input.to(input.dtype) if for_input else None, grad_weight, grad_bias


def start_sums(n, dtype, device):
    """m, s and t of N rows before the first slice, each (N, 1).

    m is the lowest finite number, not -inf: a first slice may be all -inf, and -inf - -inf is nan.
    """
    m = torch.full((n, 1), torch.finfo(dtype).min, dtype=dtype, device=device)
    return m, torch.zeros_like(m), torch.zeros_like(m)


def add_slice(m, s, t, x, part, smoothing, out=None):
    """Add the logits x (N, chunk) of the slice ``part`` to the sums m, s and t, in place.

    x - m is written to ``out``, which may be x, or to new memory.
    """
    rise = -m
    rise += torch.maximum(m, x.amax(1, keepdim=True), out=m)  # m' - m
    x = torch.sub(x, m, out=out)
    if smoothing is not None:
        t -= rise * smoothing[: part.start].sum()
        t += (x * smoothing[part]).sum(1, keepdim=True)
    s *= (-rise).exp_()
    s += x.exp_().sum(1, keepdim=True)
