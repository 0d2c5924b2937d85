"""Checks that a loss can be measured here: its device, its dtype, the memory for its tensors."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch

import impls
from benchmarks.measure import oracle
from benchmarks.measure.memory import free_bytes
from benchmarks.measure.timers import restore_meters
from benchmarks.ranks import torchrun
from benchmarks.workloads import Workload


class Unmeasurable(Exception):
    """The loss cannot be measured here; the message says why."""


def check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise Unmeasurable("there is no CUDA device here")
    if device == "cuda" and (ranks := torchrun.ranks_here()) > (gpus := torch.cuda.device_count()):
        raise Unmeasurable(f"there are {ranks} ranks here, but {gpus} CUDA devices")


def check_timeable() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise Unmeasurable("TRITON_INTERPRET is set: its interpreter shows values, not times")


def load(name: str, dtype: str, device: str, level: str | None = None) -> impls.Loss:
    """The implementation ``name``. Where a function's signature does not tell, ``level`` does.

    Raises ``Unmeasurable`` if it does not run in ``dtype`` on ``device``, or not here.
    """
    check_device(device)
    return load_for(name, dtype, device, level)


def load_for(name: str, dtype: str, device: str, level: str | None = None) -> impls.Loss:
    """As ``load``, but ``device`` need not be here."""
    try:
        # compare measures old revisions of ``impls`` too, whose ``load`` takes the name alone.
        loss = impls.load(name, level) if level else impls.load(name)
    except impls.Unavailable as error:
        raise Unmeasurable(f"{name} {error}") from error
    if replaced := restore_meters():
        raise Unmeasurable(f"{name} replaces {replaced}, so it is not measured")
    for kind, wanted, supported in (
        ("device", device, loss.support.devices),
        ("dtype", dtype, dtypes_on(loss.support, device)),
    ):
        if wanted not in supported:
            raise Unmeasurable(f"{name} has no {kind} {wanted}, only {', '.join(supported)}")
    return loss


def select_level(losses: Sequence[impls.Loss], level: str) -> list[impls.Loss]:
    """The losses that are measured at ``level``.

    If any is linear, the losses of logits take part at level linear too, with ``F.linear`` in
    front. ``logits.builtin`` does not: with ``F.linear`` in front it is ``linear.builtin``.
    """
    selected = [loss for loss in losses if loss.level == level]
    if selected and level == "linear":
        logits = [loss for loss in losses if loss.level == "logits"]
        selected += [loss.as_linear() for loss in logits if loss.name != "logits.builtin"]
    return selected


def dtypes_on(support: impls.Support, device: str) -> tuple[str, ...]:
    """The dtypes that a loss takes on ``device``.

    compare and asv measure old revisions of ``impls`` too, whose ``Support`` lacks ``dtypes_on``.
    """
    return support.dtypes_on(device) if hasattr(support, "dtypes_on") else support.dtypes


def check_options(loss: impls.Loss, needed: Iterable[str]) -> None:
    """Raise ``Unmeasurable`` if the loss lacks an argument that the workload needs."""
    has = ("input", "linear_weight", "target", *loss.options)
    if missing := [name for name in needed if name not in has]:
        raise Unmeasurable(f"{loss.name} has no {', '.join(missing)}, which the workload needs")


def check_level(chosen: Workload, level: str) -> None:
    """Raise ``Unmeasurable`` if the workload cannot be measured at ``level``."""
    if level != "logits" and not chosen.hidden:
        raise Unmeasurable(
            f"{chosen.name} has logits alone, so it has no level {level}: "
            "benchmarks.capture with head= records the hidden states too"
        )
    if level == "sharded" and chosen.vectors:
        names = " and ".join(chosen.vectors)
        raise Unmeasurable(f"{chosen.name} has {names}, which is not split across ranks here")


def tensors(chosen: Workload, level: str, dtype: str, device: str) -> dict[str, Any]:
    """The workload's arguments of a loss.

    Raises ``Unmeasurable`` if the workload lacks the level, or if too little memory is free.
    """
    check_level(chosen, level)
    # Ranks share the CPU's memory. Rank 0 evaluates the oracle on the whole weight.
    shared = torchrun.world_size() if device == "cpu" else 1
    needed, free = shared * bytes_needed(chosen, level, dtype), free_bytes(device)
    if torchrun.largest(needed - free) > 0:
        raise Unmeasurable(
            f"{chosen.name} in {dtype} at level {level} may need {needed / 2**30:.1f} GiB of "
            f"{device} memory, {free / 2**30:.1f} GiB are free; NAME@N takes N tokens"
        )
    return chosen.tensors(level, dtype, device, torchrun.rank(), torchrun.world_size())


def bytes_needed(workload: Workload, level: str, dtype: str) -> int:
    """Bytes that measuring the builtin loss holds at once, with the tensors that all losses share.

    A loss that needs more than the builtin loss fails alone.
    """
    item = torch.finfo(getattr(torch, dtype)).bits // 8
    logits = workload.tokens * workload.vocab
    arguments = (workload.tokens + workload.vocab) * workload.hidden
    if level == "logits":
        made = 4 * arguments + (4 + item) * logits
        # The input, its copy for a loss that overwrites it, and the oracle's gradient. The builtin
        # loss's log-probabilities, their gradient, and the gradient of the logits.
        held = (2 * item + 8 + 3 * item) * logits
    else:
        made = (4 + item) * arguments
        # The arguments. In float64: the arguments, their gradients, the gradients of a chunk of
        # tokens. The builtin loss's three tensors as above, the logits, the reference's logits.
        chunked = workload.tokens > oracle.rows(workload.vocab)
        held = (item + 16 + 8 * chunked) * arguments + 5 * item * logits
    # The oracle and the distances hold six chunks of logits in float64 at once.
    return max(made, held + 6 * 8 * min(logits, max(oracle.CHUNK, workload.vocab)))
