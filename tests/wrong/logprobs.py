"""Correct log-probabilities with a switch for each bug: see ``logits``."""

import math

import torch
import torch.nn.functional as F

from impls.loss import autocast, check_call
from impls.shared.logprobs import checked
from impls.shared.reduction import accumulation_dtype, check_range

BUGS = {
    "raw_logits": ("temperature", "the temperature is not used"),
    "temperature_not_in_gradient": ("temperature", "the gradient is that of a temperature of 1"),
    "temperature_twice_in_gradient": ("temperature", "the gradient is divided by it twice"),
    "any_temperature": ("bad_temperature", "a temperature of 0 divides by 0"),
    "clamped_temperature": ("bad_temperature", "a temperature of 0 counts as 0.01"),
    "always_a_pair": ("results", "entropy=False gives a pair too"),
    "never_a_pair": ("results", "entropy=True gives log p alone"),
    "half_results": ("results", "the results are rounded to the dtype of the input"),
    "column": ("results", "log p is (N, 1)"),
    "rounded_lse": ("never_positive", "logsumexp is rounded to bfloat16, below the logit"),
    "entropy_detached": ("entropy_gradient", "the entropy has no gradient"),
    "entropy_of_constant_p": ("entropy_gradient", "the gradient of p is left out of the entropy's"),
    "one_upstream": ("entropy_gradient", "both results take the upstream gradient of log p"),
    "entropy_upstream_lost": ("entropy_gradient", "without log p, the entropy has no gradient"),
    "entropy_of_raw_logits": ("entropy_gradient", "the entropy's logits have no temperature"),
    "entropy_in_bits": ("entropy", "the entropy is in bits"),
    "entropy_of_logits": ("entropy", "the entropy is lse - Σ p x in the dtype of the input"),
    "entropy_of_the_batch": ("entropy", "the entropy of each row is the mean of all rows"),
    "zero_times_infinity": ("impossible_class", "p log p is nan where p is 0"),
    "no_maximum": ("shift_invariant", "exp of the logits themselves, which overflows"),
    "clamped_logits": ("shift_invariant", "logits are clamped to ±50, so that exp never overflows"),
    "maximum_of_the_batch": ("batch_invariant", "the maximum of all rows, and exp(x - m) is 0"),
    "scaled_by_the_batch": ("batch_invariant", "the largest logit of all rows is scaled to 20"),
    "no_rows_no_pair": ("no_rows", "an empty batch has one result"),
    "no_rows_raise": ("no_rows", "an empty batch raises"),
}


class ForBackward(torch.autograd.Function):
    """x, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class Upstream(torch.autograd.Function):
    """Both results, with upstream gradients that are mixed up."""

    @staticmethod
    def forward(ctx, bug, log_p, entropy):
        ctx.bug = bug
        return log_p.view_as(log_p), entropy.view_as(entropy)

    @staticmethod
    def backward(ctx, u, v):
        return None, u, u if ctx.bug == "one_upstream" else v * u.any()


def log_softmax(bug, x):
    if bug == "no_maximum":
        return x - x.exp().sum(1, keepdim=True).log()
    if bug == "maximum_of_the_batch" and len(x):
        x = x - x.detach().max()
        return x - x.exp().sum(1, keepdim=True).log()
    if bug == "scaled_by_the_batch" and len(x):
        x = x * (20 / x.detach().abs().max()).clamp(max=1)
    if bug == "clamped_logits":
        x = x.clamp(-50, 50)
    return x.log_softmax(1)


def entropies(bug, log_p, x):
    p = log_p.exp()
    if bug == "entropy_of_constant_p":
        p = p.detach()
    if bug == "entropy_of_logits":
        half = x.to(torch.bfloat16)
        return (half.logsumexp(1) - (half.softmax(1) * half).sum(1)).to(x.dtype)
    if bug != "zero_times_infinity":
        log_p = log_p.masked_fill(p == 0, 0)
    entropy = -(p * log_p).sum(1)
    if bug == "entropy_in_bits":
        return entropy / math.log(2)
    if bug == "entropy_of_the_batch":
        return entropy.mean().expand_as(entropy)
    return entropy.detach() + 0 * entropy if bug == "entropy_detached" else entropy


def token_logprobs(bug):
    """Make the function with this bug, or the correct function for ``None``."""

    def fn(input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None):
        if bug == "clamped_temperature":
            temperature = max(temperature, 0.01)
        if bug == "any_temperature":
            input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
            check_call(input, target, None, "none", 0.0, linear_weight, linear_bias)
            check_range(target, len(linear_weight), 0)
        else:
            input, linear_weight, linear_bias = checked(
                input, linear_weight, target, temperature, linear_bias
            )
        raw = F.linear(input, linear_weight, linear_bias).to(accumulation_dtype(input.dtype))
        x = raw if bug == "raw_logits" else raw / temperature
        if bug == "temperature_not_in_gradient":
            x = ForBackward.apply(x, temperature)
        if bug == "temperature_twice_in_gradient":
            x = ForBackward.apply(x, 1 / temperature)
        log_p = log_softmax(bug, x)
        of_target = log_p.gather(1, target[:, None])
        of_target = of_target if bug == "column" else of_target.squeeze(1)
        if bug == "rounded_lse":
            lse = x.logsumexp(1)
            of_target = of_target + (lse - lse.bfloat16()).detach()
        if bug == "half_results":
            of_target = of_target.to(input.dtype)
        if bug == "no_rows_raise" and not len(x):
            raise RuntimeError("max(): expected a reduction dim")
        is_alone = bug == "never_a_pair" or (bug == "no_rows_no_pair" and not len(x))
        if is_alone or not (entropy or bug == "always_a_pair"):
            return of_target
        is_raw = bug == "entropy_of_raw_logits"
        both = of_target, entropies(bug, raw.log_softmax(1) if is_raw else log_p, x)
        return Upstream.apply(bug, *both) if "upstream" in str(bug) else both

    return fn
