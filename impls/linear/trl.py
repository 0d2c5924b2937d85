"""TRL's ChunkedLogProbFunction: log-probabilities on tiles of tokens and classes.

On CUDA a Triton kernel reads each tile. TRL's trainers reduce the log-probabilities, as this file
does.
"""

from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK_SIZE

from impls.loss import Support, autocast, check_call
from impls.shared.reduction import clear_ignored, reduce, result_dtype

support = Support(
    dtypes=("float32", "bfloat16", "float16"),
    deviations=dict.fromkeys(
        ("out_of_range", "index_error"),
        "the target's logit counts as 0, so the loss is the logsumexp",
    ),
)


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    ignore_index=-100,
    reduction="mean",
    softcap=None,
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, None, reduction, 0.0, linear_weight, linear_bias)
    y = clear_ignored(target, ignore_index)
    options = 1.0, CHUNK_SIZE, softcap, 1.0, ()  # temperature, ..., scale, no other statistics
    log_p = ChunkedLogProbFunction.apply(input, linear_weight, linear_bias, y, *options)[0]
    return reduce(-log_p, target, None, ignore_index, reduction).to(result_dtype(input))
