"""Measures losses: workloads, meters, asv suites, and the commands of ``python -m benchmarks``.

asv imports every module here in an environment that has ``impls`` but not ``reports``. So
``reports`` is imported inside the functions that use it. ``capture`` is for training scripts.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).parents[1]


def capture(
    path: str | os.PathLike[str], step: int = 0, head: "nn.Module | None" = None
) -> AbstractContextManager[None]:
    """Record one call of the loss while the context is open, as a workload to replay.

    >>> with benchmarks.capture("run.safetensors", step=1000, head=model.lm_head):
    ...     train()

    Then ``python -m benchmarks --workload file:run.safetensors`` measures losses on these data.

    ``F.cross_entropy``, ``nn.CrossEntropyLoss``, ``F.linear_cross_entropy`` and the losses of
    ``impls`` are recorded: the tensors, the targets and the options (ignore_index, label_smoothing,
    reduction, softcap, z_loss). ``step`` is the number of the call to record. The first call is 0.
    The softmax of a new model is flat: record a late call, or open the context late.

    A loss of logits does not know the hidden states. Without ``head`` its recording is replayed at
    level logits alone. ``head`` is the module that makes the logits, an ``nn.Linear``. Its input,
    weight and bias are recorded instead of the logits, and both levels can be replayed. The loss
    may get some of the head's rows, in any order, but it must get them unchanged.

    No function is patched. Until the call is recorded, Python reports each function call of this
    thread, as to a profiler. So cProfile does not work meanwhile, and Python is slower. A loss that
    ``torch.compile`` has compiled makes no call, and is not seen. Across ranks, record on one
    rank, or give each rank a ``path`` of its own. Two ranks with the same path are refused.

    Raises ``benchmarks.workloads.capture.NotCaptured`` if no call was recorded, and says why.
    """
    from benchmarks.workloads.capture import recording  # imports torch

    return recording(Path(path), step, head)
