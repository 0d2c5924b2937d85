"""The Triton kernel where there is no GPU: compiled for GPUs, and its values in the interpreter."""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton has no build for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import get_ptxas  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from impls.kernels import cross_entropy_triton as kernel  # noqa: E402

POINTERS = {
    **{"logits": "", "grad": "", "losses": "*fp32", "y": "*i64", "at_y": "*fp32"},
    **{"everywhere": "*fp32", "spread": "*fp32", "upstream": "*fp32"},
    **{"shared": "*fp32", "arrived": "*i32"},
}
NUMBERS = ("n", "vocab", "logits_stride", "grad_stride")  # that 16 divides, as it does 128256


@pytest.mark.parametrize("options", ["plain", "with options"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_registers_suffice_for_the_programs_that_run_at_once(
    architecture: int, dtype: str, options: str, tmp_path: Path
) -> None:
    """So many programs must fit that a row's can wait for each other, and none spills."""
    plain = options == "plain"
    size = kernel.SLICE if plain else kernel.SLICE_WITH_OPTIONS
    constants = {
        **{"softcap": None if plain else 30.0, "z_loss": 0.0 if plain else 1e-4},
        **{"with_grad": True, "smoothed": not plain, "parts": 16, "some_parts": 16},
        **{"size": size, "width": kernel.NUMBERS, "ahead": kernel.AHEAD},
    }
    signature = {name: kind or f"*{dtype}" for name, kind in POINTERS.items()}
    signature |= dict.fromkeys((*NUMBERS, "upstream_stride"), "i32")
    names = [*signature]
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in (*POINTERS, *NUMBERS)}
    source = ASTSource(
        kernel.rows_kernel, signature | dict.fromkeys(constants, "constexpr"), constants, divisible
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": kernel.WARPS, "maxnreg": kernel.REGISTERS},
    )
    used, spilled = resources(compiled, architecture, tmp_path)
    assert used * 32 * kernel.WARPS * kernel.PROGRAMS <= 65536
    assert spilled == 0
    assert kernel.PROGRAMS * compiled.metadata.shared <= 100 * 2**10


def resources(compiled, architecture: int, folder: Path) -> tuple[int, int]:
    """Registers of a thread and bytes that spill, as NVIDIA's assembler reports them."""
    file = folder / "kernel.ptx"
    file.write_text(compiled.asm["ptx"])
    target = re.search(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE).group(1)
    report = subprocess.run(
        [get_ptxas(architecture).path, "-v", f"-arch={target}", file, "-o", folder / "out"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return int(re.search(r"Used (\d+) registers", report).group(1)), sum(map(int, spills))
