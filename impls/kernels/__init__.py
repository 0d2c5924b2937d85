"""The kernels that our losses call: in C++ for the CPU, in CUDA C++ and in Triton for GPUs."""

from types import ModuleType

from torch import Tensor


def kernel_for(x: Tensor) -> ModuleType:
    """The module of the kernel for tensors on the device of ``x``."""
    if x.is_cuda:
        from impls.kernels import cross_entropy_cuda

        return cross_entropy_cuda
    from impls.kernels import cross_entropy

    return cross_entropy
