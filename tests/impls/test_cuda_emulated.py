"""The CUDA kernel of logits.native, compiled for the CPU: each of its threads is a CPU thread."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import cpp_extension

pytest.importorskip("triton", reason="triton has no build for this platform")

from impls.kernels import cross_entropy_cuda as kernel

EMULATED = Path(__file__).parent / "emulated"
ROUNDING = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-5}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the emulator needs Linux")


@dataclass(frozen=True)
class Rows:
    """Rows of logits in memory that has other numbers too, and where their gradient goes."""

    n: int
    vocab: int
    gap: int = 0  # entries between two rows
    skipped: int = 0  # entries before the first row
    in_place: bool = False


# Rows of at most 2 × 2 strips of 256 vectors. Two clusters have one row each, or more than slots.
CASES = [
    Rows(9, 1000),
    Rows(17, 777),  # no row but the first begins at a multiple of 16 bytes
    Rows(7, 777, gap=3, skipped=1),
    Rows(9, 2045, skipped=1),  # the rows end in one strip or in the next
    Rows(9, 4093, skipped=1, in_place=True),
    Rows(3, 2048, in_place=True),
    Rows(5, 3),
    Rows(1, 1),
]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@dataclass(frozen=True)
class Emulated:
    """The kernel for 2 blocks of 2 warps."""

    launch: Callable[..., None]
    dtype: torch.dtype
    with_grad: bool


@pytest.fixture(
    scope="module",
    params=[
        (torch.bfloat16, 3, True),
        slow((torch.float16, 4, True)),
        slow((torch.float32, 2, True)),
        slow((torch.float32, 4, False)),
    ],
    ids=str,
)
def emulated(request: pytest.FixtureRequest, tmp_path_factory) -> Emulated:
    dtype, slots, with_grad = request.param
    file = tmp_path_factory.mktemp("emulated") / "kernel.so"
    defined = kernel.macros(kernel.DTYPES[dtype], kernel.Shape(2, 2, slots, 256), with_grad)
    included = [f"-I{EMULATED}", f"-I{kernel.SOURCE.parent}"]
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", *defined, *included]
    compiler, source = cpp_extension.get_cxx_compiler(), str(EMULATED / "launch.cpp")
    subprocess.run([compiler, *flags, source, "-o", str(file)], check=True)
    function = ctypes.CDLL(str(file)).launch
    function.argtypes = [ctypes.c_int, *kernel.ARGUMENTS]
    return Emulated(function, dtype, with_grad)


def memory(rows: Rows, dtype: torch.dtype, fill: float | None = None) -> tuple[Tensor, Tensor]:
    """Memory of random or equal numbers, and the rows in it."""
    size = rows.skipped + rows.n * (rows.vocab + rows.gap) + 64
    everything = torch.randn(size) * 3 if fill is None else torch.full((size,), fill)
    everything = everything.to(dtype)
    used = everything[rows.skipped :][: rows.n * (rows.vocab + rows.gap)]
    return everything, used.view(rows.n, -1)[:, : rows.vocab]


@pytest.mark.parametrize("rows", CASES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "large", "masked"])
def test_it_is_right_and_writes_nothing_else(rows: Rows, kind: str, emulated) -> None:
    n, vocab, dtype = rows.n, rows.vocab, emulated.dtype
    torch.manual_seed(n * vocab)
    everything, x = memory(rows, dtype)
    everything_else, grad = (everything, x) if rows.in_place else memory(rows, dtype, fill=77.0)
    y = torch.randint(vocab, (n,))
    a, up = torch.rand(n) + 0.5, torch.randn(n)
    up[0] = 0  # ignored
    if kind == "large":
        x += 256
    if kind == "masked":
        x[0] = float("nan")
        x[1:, ::3] = float("-inf")
        y = (y // 3 * 3 + 1).clamp(max=vocab - 1)
    if n > 5:
        y[2] = vocab + 7
    exact, untouched = x.double(), everything_else.clone()
    z_loss, losses = 1e-2, torch.full((n,), 55.0)
    tensors = (x, grad, losses, y, a, up)
    strides = [tensor.stride(0) * tensor.itemsize for tensor in (x, grad)]
    emulated.launch(
        min(n, 2), *(tensor.data_ptr() for tensor in tensors), n, vocab, *strides, z_loss
    )

    counted, in_range = up != 0, y < vocab
    log_p, lse = exact.log_softmax(1), exact.logsumexp(1)
    log_p_y = log_p.gather(1, y.clamp(max=vocab - 1)[:, None]).squeeze(1)
    expected = -a * log_p_y + z_loss * lse**2
    q = F.one_hot(y.clamp(max=vocab - 1), vocab) * a[:, None]
    gradient = (log_p.exp() * (a + 2 * z_loss * lse)[:, None] - q) * up[:, None]
    expected[~in_range], gradient[~in_range] = float("nan"), float("nan")
    gradient[~counted] = 0
    if emulated.with_grad:
        expected[~counted] = 0
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    outside = untouched.clone()
    if emulated.with_grad:
        error, finite = grad.double() - gradient, ~gradient.isnan()
        assert torch.equal(grad.isnan(), ~finite)
        assert error[finite].norm() <= ROUNDING[dtype] * gradient[finite].norm()
        flat = outside[rows.skipped :][: n * (vocab + rows.gap)].view(n, -1)
        flat[:, :vocab] = grad
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(everything_else.view(bits), outside.view(bits))


def test_no_register_spills(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch for a CPU has no compiler of CUDA")
    triton = pytest.importorskip("triton", reason="its package has NVIDIA's tools")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for dtype, number in kernel.DTYPES.items():
        for row in (4, 2**14, 2**17, 2**18, 2**19):  # bytes
            split = kernel.shape(row // dtype.itemsize, dtype.itemsize)
            assert split is not None
            file = tmp_path / "kernel.cubin"
            file.write_bytes(kernel.cubin(number, split, True))
            command = [str(tool), "-res-usage", str(file)]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage
