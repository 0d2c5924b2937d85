"""The C++ kernel of ``cross_entropy.cpp``: the losses of rows of logits, and the logits' gradient.

It is compiled at the first call on a machine, in about 20 seconds, into torch's cache of extensions
(``TORCH_EXTENSIONS_DIR``). The file's name has all that the binary depends on: the source, the
flags, torch's version, and the vector instructions that torch uses here (AVX-512, AVX2 or neither).
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impls import Unavailable

SOURCE = Path(__file__).with_suffix(".cpp")
VECTOR_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "DEFAULT": [],
}


def flags() -> list[str]:
    """The compiler's flags. They select the vector instructions of ATen's ``Vectorized``."""
    capability = torch.backends.cpu.get_cpu_capability()
    name = capability if capability in VECTOR_FLAGS else "DEFAULT"
    macros = [f"-DCPU_CAPABILITY={name}", f"-DCPU_CAPABILITY_{name}"]
    return ["-O3", "-fopenmp", *macros, *VECTOR_FLAGS[name]]


def binary() -> Path:
    """The compiled kernel, whether it is there or not."""
    from torch.utils import cpp_extension

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    parts = [SOURCE.read_text("utf-8"), torch.__version__, *flags()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Path(root) / "cross_entropy_bench" / f"cross_entropy_{digest}.so"


def check_available() -> None:
    """Raise ``Unavailable`` if the kernel is not compiled yet and no compiler is here."""
    from torch.utils import cpp_extension

    if binary().exists():
        return
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise Unavailable(f"needs a C++ compiler: there is no {compiler} here")
    if shutil.which("ninja", path=search_path()) is None:
        raise Unavailable("needs the package ninja, which is not installed")


def search_path() -> str:
    """PATH, and the folder where pip installs ninja: it is not on PATH in each environment."""
    return os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])


def build(file: Path) -> None:
    """Compile the kernel to ``file``, and load it. Raise ``Unavailable`` if it does not compile.

    No process sees a file that is not complete: the file is moved to its place when it is.
    """
    from torch.utils import cpp_extension

    check_available()
    path = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        os.environ["PATH"] = search_path()
        try:
            cpp_extension.load(
                file.stem,
                str(SOURCE),
                extra_cflags=flags(),
                build_directory=folder,
                is_python_module=False,
            )
        except (RuntimeError, subprocess.CalledProcessError) as error:
            lines = str(error).splitlines()
            reason = next((line for line in lines if "error:" in line), lines[0])
            raise Unavailable(f"needs a C++ compiler that compiles its kernel: {reason}") from error
        finally:
            os.environ["PATH"] = path
        os.replace(Path(folder) / file.name, file)


@functools.cache
def library() -> Any:
    """The kernel's operators. The first process that needs them compiles; others wait for it."""
    file = binary()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released if the process ends, however it ends
        if file.exists():
            torch.ops.load_library(file)
        else:
            build(file)
    return torch.ops.cross_entropy_bench_cpp


@torch.library.custom_op(
    "cross_entropy_bench::losses_and_gradient_cpp", mutates_args=(), device_types="cpu"
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
    ``impls.shared.reduction``. Each row of the logits must be contiguous. Without ``upstream`` the
    gradient is empty.

    A row whose upstream gradient is 0 is not read: its loss and gradient are 0. A target out of
    range raises ``IndexError``.
    """
    grad = logits.new_empty(logits.shape if upstream is not None else 0)
    into = grad if upstream is not None else None
    losses = library().rows_(logits, y, target_weight, smoothing, upstream, into, softcap, z_loss)
    return losses, grad


@losses_and_gradient.register_fake
def _(logits, y, target_weight, smoothing, upstream, softcap, z_loss):
    shape = logits.shape if upstream is not None else (0,)
    return target_weight.new_empty(len(logits)), logits.new_empty(shape)


@torch.library.custom_op(
    "cross_entropy_bench::losses_and_gradient_cpp_", mutates_args=("logits",), device_types="cpu"
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
    q = y, target_weight, smoothing
    return library().rows_(logits, *q, upstream, logits, softcap, z_loss)


@losses_and_gradient_.register_fake
def _(logits, y, target_weight, smoothing, upstream, softcap, z_loss):
    return target_weight.new_empty(len(logits))


@torch.library.custom_op(
    "cross_entropy_bench::scale_cpp_", mutates_args=("grad",), device_types="cpu"
)
def scale_(grad: Tensor, factor: Tensor) -> None:
    """Multiply ``grad`` by the number ``factor``. A factor of 1 reads and writes nothing.

    The memory of ``grad`` must have no gaps.
    """
    library().scale_(grad, factor)


@scale_.register_fake
def _(grad, factor):
    return None
