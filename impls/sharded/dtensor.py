"""PyTorch's own: DTensors of the slices, F.cross_entropy in loss_parallel.

torch 2.13 has no label smoothing there, and needs the whole class weights on every rank. So neither
is an option here. The slices must be those of ``torch.chunk``: a DTensor has no others.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel

from impls.loss import Support, autocast, check_call
from impls.shared.reduction import check_range, first_order
from impls.shared.shards import slice_sizes

one_class = {"sizes": "with one class raises RuntimeError"}
support = Support(
    even_slices=True,
    deviations={
        "in_a_compiled_step": "torch.compile cannot trace its DeviceMesh",
        **(one_class if torch.__version__ >= "2.13" else {}),
    },
)


class DTensorLoss(torch.autograd.Function):
    """Hidden states, weight and bias to the loss, with forward and backward in ``loss_parallel``.

    torch needs both in that context. A caller runs backward outside it.
    """

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, mesh, vocab, options):
        tensors = (input, linear_weight, linear_bias)
        ctx.leaves = [
            tensor if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(tensors, ctx.needs_input_grad, strict=False)
        ]
        with torch.enable_grad(), loss_parallel():
            h, w, b = ctx.leaves
            h = DTensor.from_local(h, mesh, [Replicate()])
            shape = torch.Size((vocab, w.shape[1]))
            w = DTensor.from_local(w, mesh, [Shard(0)], shape=shape, stride=(shape[1], 1))
            if b is not None:
                b = DTensor.from_local(b, mesh, [Shard(0)], shape=shape[:1], stride=(1,))
            ctx.value = F.cross_entropy(F.linear(h, w, b), target, **options).to_local()
        return ctx.value.detach()

    @staticmethod
    @first_order
    def backward(ctx, upstream):
        needed = [leaf for leaf in ctx.leaves if leaf is not None and leaf.requires_grad]
        with loss_parallel():
            grads = iter(torch.autograd.grad(ctx.value, needed, upstream, retain_graph=True))
        is_needed = ctx.needs_input_grad[:3]
        return *(next(grads) if each else None for each in is_needed), *[None] * 4


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    group=None,
    linear_bias=None,
    ignore_index=-100,
    reduction="mean",
):
    input, linear_weight, linear_bias = autocast(input, linear_weight, linear_bias)
    check_call(input, target, None, reduction, 0.0, linear_weight, linear_bias)
    sizes = slice_sizes(linear_weight, group)
    check_range(target, sizes.sum(), ignore_index)
    vocab, ranks = int(sizes.sum()), len(sizes)
    chunks = [len(chunk) for chunk in torch.arange(vocab).chunk(ranks)]
    if sizes.tolist() != chunks:
        raise ValueError(
            f"{vocab} classes on {ranks} ranks must be in the slices of torch.chunk, none of them "
            f"empty: got {sizes.tolist()}"
        )
    mesh = DeviceMesh.from_group(group or dist.group.WORLD, input.device.type)
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return DTensorLoss.apply(input, linear_weight, linear_bias, target, mesh, vocab, options)
