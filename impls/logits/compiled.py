"""logits.eager through torch.compile, which fuses its passes."""

from impls.logits.eager import RowLosses
from impls.loss import check_call
from impls.shared.compile import compile_whole
from impls.shared.reduction import reduce, result_dtype, target_distribution

row_losses = compile_whole(RowLosses.apply)


def cross_entropy(
    input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    check_call(input, target, weight, reduction, label_smoothing)
    vocab, dtype = input.shape[1], input.dtype
    q = target_distribution(target, weight, vocab, dtype, ignore_index, label_smoothing)
    losses = row_losses(input, *q)
    losses = reduce(losses, target, weight, ignore_index, reduction)
    return losses.to(result_dtype(input))
