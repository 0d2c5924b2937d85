"""A kernel as torch operators: ``torch.compile`` and ``FakeTensorMode`` do not look into them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Operators(NamedTuple):
    losses_and_gradient: Any
    losses_and_gradient_: Any
    scale_: Any


def register(
    suffix: str,
    rows: Callable[..., Tensor],
    scale: Callable[[Tensor, Tensor], None],
    device: str | None = None,
) -> Operators:
    """The operators of a kernel, with names that end in ``suffix``, on one ``device`` or on all.

    ``rows`` takes the arguments of ``losses_and_gradient_`` with ``grad``, which receives the
    gradient, after ``upstream``. ``scale`` is ``scale_``.
    """

    @torch.library.custom_op(
        f"cross_entropy_bench::losses_and_gradient{suffix}", mutates_args=(), device_types=device
    )
    def losses_and_gradient(
        logits: Tensor,
        y: Tensor,
        target_weight: Tensor,
        smoothing: Tensor | None,
        upstream: Tensor | None,
        softcap: float | None,
        z_loss: float,
    ) -> tuple[Tensor, Tensor]:
        """The losses (n,) of logits (n, vocab) and, given ``upstream`` (n,), the logits' gradient.

        y (n,), ``target_weight`` (n,) and ``smoothing`` (vocab,) are the distribution q, as in
        ``impls.shared.reduction``. Each row of the logits must be contiguous. Without ``upstream``
        the gradient is empty.

        A row whose upstream gradient is 0 may hold nan: its loss and gradient are 0. A target out
        of range raises ``IndexError`` on a CPU; elsewhere its row has the loss nan and a gradient
        of nan.
        """
        grad = logits.new_empty(logits.shape if upstream is not None else 0)
        into = grad if upstream is not None else None
        q = y, target_weight, smoothing
        return rows(logits, *q, upstream, into, softcap, z_loss), grad

    @losses_and_gradient.register_fake
    def _(logits, y, target_weight, smoothing, upstream, softcap, z_loss):
        shape = logits.shape if upstream is not None else (0,)
        return target_weight.new_empty(len(logits)), logits.new_empty(shape)

    @torch.library.custom_op(
        f"cross_entropy_bench::losses_and_gradient{suffix}_",
        mutates_args=("logits",),
        device_types=device,
    )
    def losses_and_gradient_(
        logits: Tensor,
        y: Tensor,
        target_weight: Tensor,
        smoothing: Tensor | None,
        upstream: Tensor,
        softcap: float | None,
        z_loss: float,
    ) -> Tensor:
        """The losses (n,), as from ``losses_and_gradient``; the gradient overwrites the logits."""
        return rows(logits, y, target_weight, smoothing, upstream, logits, softcap, z_loss)

    @losses_and_gradient_.register_fake
    def _(logits, y, target_weight, smoothing, upstream, softcap, z_loss):
        return target_weight.new_empty(len(logits))

    @torch.library.custom_op(
        f"cross_entropy_bench::scale{suffix}_", mutates_args=("grad",), device_types=device
    )
    def scale_(grad: Tensor, factor: Tensor) -> None:
        """Multiply ``grad`` by the number ``factor``. A factor of 1 reads and writes nothing.

        The memory of ``grad`` must have no gaps. On CUDA the host does not wait for the factor.
        """
        scale(grad, factor)

    @scale_.register_fake
    def _(grad, factor):
        return None

    return Operators(losses_and_gradient, losses_and_gradient_, scale_)
