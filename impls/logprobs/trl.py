"""TRL's ChunkedLogProbFunction: log-probabilities and entropies on tiles of tokens and classes.

On CUDA a Triton kernel reads each tile. TRL's trainers for reinforcement learning call it.
"""

from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK_SIZE

from impls.loss import Support, autocast, check_call

support = Support(
    dtypes=("float32", "bfloat16", "float16"),
    deviations={
        **dict.fromkeys(
            ("out_of_range", "index_error"),
            "the target's logit counts as 0, so -log p is the logsumexp",
        ),
        "bad_temperature": "a temperature of 0 raises ZeroDivisionError, and -1 is accepted",
        "entropy": "lse - Σ p x rounds to less than 0 where a row is certain",
        "impossible_class": "the entropy is nan: it has the term 0 · -inf",
    },
)


def token_logprobs(
    input, linear_weight, target, *, temperature=1.0, entropy=False, linear_bias=None
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, None, "none", 0.0, linear_weight, linear_bias)
    tensors = (input, linear_weight, linear_bias, target)
    softcap, scale, outputs = None, 1.0, ("entropy",) if entropy else ()
    options = (temperature, CHUNK_SIZE, softcap, scale, outputs)
    log_p, entropies, *_ = ChunkedLogProbFunction.apply(*tensors, *options)
    return (log_p, entropies) if entropy else log_p
