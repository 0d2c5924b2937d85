"""torchtitan's loss: float32 logits, then F.cross_entropy, through torch.compile.

It gives the sum of the rows and always ignores -100, so ``ignore_index`` and ``reduction`` are no
options here. torchtitan's trainer divides by the number of rows that count, as this file does.
"""

import torch
from torchtitan.components.loss import IGNORE_INDEX, cross_entropy_loss

from impls.loss import Support, check_call
from impls.shared.compile import raised_recompile_limit
from impls.shared.reduction import result_dtype

support = Support(
    dtypes=("float32", "bfloat16", "float16"),
    deviations={"index_error": "raises RuntimeError, where F.cross_entropy raises IndexError"},
)

compiled = torch.compile(cross_entropy_loss)


def cross_entropy(input, target):
    check_call(input, target, None, "mean", 0.0)
    with raised_recompile_limit():
        total = compiled(input[None], target[None])  # a batch of one sequence
    return (total / (target != IGNORE_INDEX).sum()).to(result_dtype(input))
