"""NeMo AutoModel's ChunkedCrossEntropy: 512 tokens at a time; backward makes the logits again.

It compiles what it computes of a chunk.
"""

import functools

from nemo_automodel.components.loss.chunked_ce import ChunkedCrossEntropy

from impls.loss import Support, autocast, check_call
from impls.shared.compile import raised_recompile_limit
from impls.shared.reduction import result_dtype

support = Support(
    dtypes=("float32", "bfloat16", "float16"),
    deviations={"index_error": "raises RuntimeError, where F.cross_entropy raises IndexError"},
)

# One module for each pair of options. It holds a compiled function.
module = functools.cache(ChunkedCrossEntropy)


def linear_cross_entropy(input, linear_weight, target, *, ignore_index=-100, reduction="mean"):
    input, linear_weight = autocast(input, linear_weight)
    check_call(input, target, None, reduction, 0.0, linear_weight)
    with raised_recompile_limit():
        losses = module(ignore_index=ignore_index, reduction=reduction)(
            input, target, linear_weight
        )
    return losses.to(result_dtype(input))
