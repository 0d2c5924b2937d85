"""The CUDA C++ kernel of ``cross_entropy_cuda.cu`` for Hopper GPUs; Triton for all else.

The kernel has neither smoothing nor softcap. Calls with these, and other GPUs, get the Triton
kernel. NVRTC, a part of torch's CUDA build, compiles the kernel at the first call of a process, in
about 0.3 seconds.
"""

import ctypes
import functools
import importlib.util
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from impls.kernels import cross_entropy_triton
from impls.kernels.operators import register

SOURCE = Path(__file__).with_suffix(".cu")
HEADER = SOURCE.with_suffix(".cuh")
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as the source numbers them
HOPPER = (9, 0)
SLOTS = (4, 3, 2)  # strips that a warp holds or waits for: the most that fit
STRIPS = (128, 256)  # vectors of 16 bytes that a warp works on at once: at least, at most
WARPS = 16  # of a block, unless its strips would be shorter or longer
SHARED = 216 * 2**10  # bytes of a block for strips
ARGUMENTS = (
    *[ctypes.c_void_p] * 6,
    *(ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_float),
)


class Shape(NamedTuple):
    """How a row is split: over the blocks of a cluster, and each block's part over its warps."""

    cluster: int
    warps: int  # of a block
    slots: int  # of a warp, each for a strip
    strip: int  # vectors

    @property
    def shared(self) -> int:
        """Bytes of a block for strips."""
        return self.warps * self.slots * self.strip * 16


@functools.cache
def shape(vocab: int, itemsize: int) -> Shape | None:
    """The smallest cluster that holds the most rows, or None if the rows are too long."""
    loaded = 16 // itemsize
    # A row that does not begin at a multiple of 16 bytes may need one more vector.
    vectors = -(-vocab // loaded) + (vocab % loaded > 1)
    for slots, cluster in itertools.product(SLOTS, (1, 2, 4, 8)):
        of_block = -(-vectors // cluster)
        strip = min(max(-(-of_block // (32 * WARPS)) * 32, STRIPS[0]), STRIPS[1])
        split = Shape(cluster, max(1, -(-of_block // strip)), slots, strip)
        if split.shared <= SHARED:
            return split
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


def macros(dtype: int, split: Shape, with_grad: bool) -> list[str]:
    """A compiler's options that define what the source leaves open."""
    values = {"DTYPE": dtype, "WITH_GRAD": int(with_grad), "CLUSTER": split.cluster}
    values |= {"WARPS": split.warps, "SLOTS": split.slots, "STRIP": split.strip}
    return [f"-D{name}={value}" for name, value in values.items()]


@functools.cache
def cubin(dtype: int, split: Shape, with_grad: bool) -> bytes:
    """The kernel's machine code for Hopper."""
    from cuda.bindings import nvrtc

    options = ["--gpu-architecture=sm_90", "--std=c++17", *macros(dtype, split, with_grad)]
    files = (SOURCE.read_bytes(), SOURCE.name.encode())
    headers = ([HEADER.read_bytes()], [HEADER.name.encode()])
    program = check(nvrtc.nvrtcCreateProgram(*files, 1, *headers))
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


@functools.cache
def loaded(device: int, dtype: int, split: Shape, with_grad: bool) -> Kernel:
    """The kernel on ``device``, whose context is current."""
    from cuda.bindings import driver

    module = check(driver.cuModuleLoadData(cubin(dtype, split, with_grad)))
    function = check(driver.cuModuleGetFunction(module, b"rows_kernel"))
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    check(driver.cuFuncSetAttribute(function, limit, split.shared))
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = split.cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 32 * split.warps, 1, 1
    config.sharedMemBytes = split.shared
    return Kernel(function, check(driver.cuOccupancyMaxActiveClusters(function, config)))


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
    split = shape(vocab, logits.itemsize)
    assert split is not None  # it fits
    with torch.cuda.device_of(logits):
        device = logits.device.index
        make_context_current(device)
        kernel = loaded(device, DTYPES[logits.dtype], split, grad is not None)
        tensors = (logits, grad, losses, y, target_weight, upstream)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        strides = [0 if x is None else x.stride(0) * x.itemsize for x in (logits, grad)]
        arguments = (*pointers, n, vocab, *strides, z_loss)
        blocks = split.cluster * min(n, kernel.clusters)
        sizes = (blocks, 1, 1, 32 * split.warps, 1, 1, split.shared)
        stream = torch.cuda.current_stream().cuda_stream
        values = (arguments, ARGUMENTS)
        check(driver.cuLaunchKernel(kernel.function, *sizes, stream, values, 0))
    return losses


losses_and_gradient, losses_and_gradient_, scale_ = register(
    "_cuda", rows, cross_entropy_triton.scale
)
