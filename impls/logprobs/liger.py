"""Liger-Kernel's fused linear scaled cross entropy: 512 tokens at a time, again in backward.

On a CPU it is plain PyTorch, after verl's loss for reinforcement learning. Liger-Kernel's kernels
for Hopper GPUs were not tried.
"""

from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

from impls.loss import Support, autocast, check_call

support = Support(
    devices=("cpu",),
    dtypes=("float32", "bfloat16", "float16"),
    deviations={
        **dict.fromkeys(("empty", "no_rows"), "an empty batch raises ValueError"),
        "index_error": "raises ValueError, which does not name the target",
        "many_chunks": "the weight's gradient is summed over chunks in half precision",
        "results": "the entropies have the dtype of the input",
        "entropy": "lse - Σ p x rounds to less than 0 where a row is certain",
    },
)


def token_logprobs(input, linear_weight, target, *, temperature=1.0, entropy=False):
    input, linear_weight = autocast(input, linear_weight)
    check_call(input, target, None, "none", 0.0, linear_weight)
    results = LigerFusedLinearScaledCrossEntropyFunction.apply(
        input, linear_weight, target, temperature, return_entropy=entropy
    )
    return (-results[0], results[1]) if entropy else -results
