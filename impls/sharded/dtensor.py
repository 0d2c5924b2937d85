"""PyTorch's own: DTensors of the slices, and ``F.cross_entropy`` under ``loss_parallel``.

torch 2.13 has no label smoothing there, and wants class weights whole on every rank, so these are
no options of this one. Slices that ``torch.chunk`` would not cut, a DTensor cannot have.
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

of_one_class = {"sizes": "of one class, raises RuntimeError"}
support = Support(
    even_slices=True,
    deviations={
        "in_a_compiled_step": "torch.compile cannot trace its DeviceMesh",
        **(of_one_class if torch.__version__ >= "2.13" else {}),
    },
)


class Parallel(torch.autograd.Function):
    """The loss and, under ``loss_parallel`` as it must be, its backward, whoever calls it."""

    @staticmethod
    def forward(ctx, input, linear_weight, linear_bias, target, mesh, vocab, options):
        tensors = (input, linear_weight, linear_bias)
        needed = zip(tensors, ctx.needs_input_grad, strict=False)
        ctx.leaves = [t if t is None else t.detach().requires_grad_(need) for t, need in needed]
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
        wanted = [leaf for leaf in ctx.leaves if leaf is not None and leaf.requires_grad]
        with loss_parallel():
            grads = iter(torch.autograd.grad(ctx.value, wanted, upstream, retain_graph=True))
        return *(next(grads) if need else None for need in ctx.needs_input_grad[:3]), *[None] * 4


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
            f"{vocab} classes on {ranks} ranks must be sliced as torch.chunk does, none of them "
            f"empty: got {sizes.tolist()}"
        )
    mesh = DeviceMesh.from_group(group or dist.group.WORLD, input.device.type)
    options = {"ignore_index": ignore_index, "reduction": reduction}
    return Parallel.apply(input, linear_weight, linear_bias, target, mesh, vocab, options)
