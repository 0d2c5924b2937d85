"""The C++ kernel of ``cross_entropy.cpp``: the losses of rows of logits, and the logits' gradient.

It is compiled at the first call on a machine, in 10 to 20 seconds, into torch's cache of extensions
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
from impls.kernels.operators import register

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


def rows(logits: Tensor, *arguments: Any) -> Tensor:
    return library().rows_(logits, *arguments)


def scale(grad: Tensor, factor: Tensor) -> None:
    library().scale_(grad, factor)


losses_and_gradient, losses_and_gradient_, scale_ = register("_cpp", rows, scale, "cpu")
