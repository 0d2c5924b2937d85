"""Makes tensors without elements, for the plan and for the gate.

``simulation`` imports torch's memory tracker, which takes a second. The gate does without it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.measure import torch_compat

Shapes = Mapping[str, tuple[int, ...]]


def fake(shapes: Shapes, dtype: str, device: str) -> dict[str, Tensor]:
    """Tensors of these shapes, the target of int64. To be called in a ``FakeTensorMode``."""
    if device == "cuda" and not torch.cuda.is_available():
        device = "cpu"  # without a driver, autograd takes fake tensors of the CPU alone
    dtypes = {"target": torch.int64}
    return {
        name: torch.empty(shape, dtype=dtypes.get(name, getattr(torch, dtype)), device=device)
        for name, shape in shapes.items()
    }


def argument_bytes(shapes: Shapes, dtype: str) -> int:
    with torch_compat.FakeTensorMode():
        return sum(tensor.nbytes for tensor in fake(shapes, dtype, "cpu").values())
