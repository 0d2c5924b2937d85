"""The CUDA C++ kernel of ``cross_entropy_cuda.cu`` for Hopper GPUs; Triton for all else.

The kernel has neither smoothing nor softcap. Calls with these, and other GPUs, get the Triton
kernel. NVRTC, a part of torch's CUDA build, compiles the kernel at the first call of a process, in
about 0.3 seconds.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from impls.kernels import cross_entropy_triton
from impls.kernels.operators import register

SOURCE = Path(__file__).with_suffix(".cu")
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as the source numbers them
HOPPER = (9, 0)
SHARED_MEMORY = 227 * 1024  # bytes of a block, on Hopper
WARPS = 16  # of a block
AHEAD = 1  # rows between the two passes of a warp
BATCH = 4  # vectors that a thread works on at once
ARGUMENTS = (
    *[ctypes.c_void_p] * 6,
    *(ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_float),
    ctypes.c_int,
)


class Shape(NamedTuple):
    """How a row is split: over the blocks of a cluster, and each block's part over its warps."""

    cluster: int
    slots: int  # of a warp's ring: strips that it holds or waits for
    length: int  # of a strip, in vectors of 16 bytes


def shape(vocab: int, itemsize: int) -> Shape | None:
    """The smallest cluster whose warps hold two strips while a third is on its way, or None."""
    loaded = 16 // itemsize
    # A row that does not begin at a multiple of 16 bytes may need one more vector.
    vectors = (vocab + loaded - 1 + (loaded - 1 if vocab % loaded else 0)) // loaded
    for cluster in (1, 2, 4, 8):
        length = max(1, -(-vectors // (cluster * WARPS)))
        most_slots = 8
        tables = 8 * WARPS * most_slots + (2 * AHEAD + 2) * 8 * (cluster * WARPS + 1)
        slots = min(most_slots, (SHARED_MEMORY - tables) // (WARPS * length * 16))
        if slots >= AHEAD + 2:
            return Shape(cluster, slots, length)
    return None


def fits(logits: Tensor, grad: Tensor | None) -> bool:
    """Whether the CUDA C++ kernel takes these rows: on this GPU, of this length, so aligned."""
    vocab, size = logits.shape[1], logits.itemsize
    if shape(vocab, size) is None or not is_hopper(logits.device):
        return False
    if grad is None or grad is logits:
        return logits.stride(0) >= vocab
    # Each row and its gradient are read and written at the same distance from a multiple of 16.
    apart = (logits.data_ptr() - grad.data_ptr(), (logits.stride(0) - grad.stride(0)) * size)
    return logits.stride(0) >= vocab and all(distance % 16 == 0 for distance in apart)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether the device is a Hopper GPU, and torch's build brings NVIDIA's Python bindings."""
    return (
        torch.cuda.get_device_capability(device) == HOPPER
        and importlib.util.find_spec("cuda") is not None
        and importlib.util.find_spec("cuda.bindings") is not None
    )


def check(result: tuple[Any, ...]) -> Any:
    """What a function of NVIDIA's bindings returned, without its status. Raises RuntimeError."""
    status, *values = result
    if status != 0:
        raise RuntimeError(f"CUDA: {status}")
    return values[0] if values else None


@functools.cache
def cubin(dtype: int, cluster: int, slots: int, with_grad: bool) -> bytes:
    """The kernel's machine code for Hopper."""
    from cuda.bindings import nvrtc

    values = {"DTYPE": dtype, "CLUSTER": cluster, "WARPS": WARPS, "SLOTS": slots}
    values |= {"AHEAD": AHEAD, "BATCH": BATCH, "WITH_GRAD": int(with_grad)}
    defined = [f"-D{name}={value}" for name, value in values.items()]
    options = ["--gpu-architecture=sm_90", "--std=c++17", *defined]
    source = SOURCE.read_bytes()
    program = check(nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], []))
    status = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
    if status != 0:
        log = bytearray(check(nvrtc.nvrtcGetProgramLogSize(program)))
        check(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{SOURCE.name} does not compile:\n{log.decode()}")
    code = bytearray(check(nvrtc.nvrtcGetCUBINSize(program)))
    check(nvrtc.nvrtcGetCUBIN(program, code))
    check(nvrtc.nvrtcDestroyProgram(program))
    return bytes(code)


class Kernel(NamedTuple):
    """A kernel that is loaded on a device."""

    function: Any
    clusters: int  # that run at once
    shared: int  # bytes of a block


@functools.cache
def loaded(
    device: int, dtype: int, cluster: int, slots: int, length: int, with_grad: bool
) -> Kernel:
    """The kernel on ``device``, whose context is current."""
    from cuda.bindings import driver

    module = check(driver.cuModuleLoadData(cubin(dtype, cluster, slots, with_grad)))
    function = check(driver.cuModuleGetFunction(module, b"rows_kernel"))
    shared = slots * WARPS * length * 16
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    check(driver.cuFuncSetAttribute(function, limit, shared))
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 32 * WARPS, 1, 1
    config.sharedMemBytes = shared
    clusters = check(driver.cuOccupancyMaxActiveClusters(function, config))
    return Kernel(function, clusters, shared)


def make_context_current(device: int) -> None:
    """A thread that has called nothing of CUDA has no context, as one of autograd's may be."""
    from cuda.bindings import driver

    if int(check(driver.cuCtxGetCurrent())) == 0:
        check(driver.cuCtxSetCurrent(check(driver.cuDevicePrimaryCtxRetain(device))))


def rows(
    logits: Tensor,
    y: Tensor,
    target_weight: Tensor,
    smoothing: Tensor | None,
    upstream: Tensor | None,
    grad: Tensor | None,
    softcap: float | None,
    z_loss: float,
) -> Tensor:
    """The losses (n,). With an ``upstream`` gradient, ``grad`` receives the logits' gradient."""
    if smoothing is not None or softcap is not None or not fits(logits, grad):
        q = y, target_weight, smoothing
        return cross_entropy_triton.launch(logits, *q, upstream, grad, softcap, z_loss)
    from cuda.bindings import driver

    n, vocab = logits.shape
    losses = target_weight.new_empty(n)
    if n == 0:
        return losses
    cluster, slots, length = shape(vocab, logits.itemsize)  # type: ignore[misc]
    with torch.cuda.device_of(logits):
        device = logits.device.index
        make_context_current(device)
        kernel = loaded(device, DTYPES[logits.dtype], cluster, slots, length, grad is not None)
        tensors = (logits, grad, losses, y, target_weight, upstream)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        strides = [0 if x is None else x.stride(0) * x.itemsize for x in (logits, grad)]
        arguments = (*pointers, n, vocab, *strides, z_loss, length)
        blocks = cluster * min(n, kernel.clusters)
        stream = torch.cuda.current_stream().cuda_stream
        sizes = (blocks, 1, 1, 32 * WARPS, 1, 1, kernel.shared)
        values = (arguments, ARGUMENTS)
        check(driver.cuLaunchKernel(kernel.function, *sizes, stream, values, 0))
    return losses


losses_and_gradient, losses_and_gradient_, scale_ = register(
    "_cuda", rows, cross_entropy_triton.scale
)
