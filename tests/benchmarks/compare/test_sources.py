"""Which files decide what a loss does."""

from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.compare.sources import sources

FILES = {
    "__init__.py": "import impls.loss",
    "loss.py": "import ast",
    "logits/__init__.py": "",
    "logits/eager.py": "from impls.shared.rows import losses",
    "logits/compiled.py": "from impls.logits.eager import RowLosses",
    "logits/lazy.py": "def cross_entropy():\n    from impls.kernels import kernel",
    "logits/beside.py": "from . import eager\nfrom ..shared import chunks",
    "logits/broken.py": "from impls.shared import (",
    "logits/plain.py": "import torch\nfrom torch import rows",
    "shared/__init__.py": "",
    "shared/rows.py": "import impls.shared.reduction",
    "shared/reduction.py": "from impls.shared.rows import losses",
    "shared/chunks.py": "",
    "kernels/kernel.py": "",
    "kernels/kernel.cpp": "import of no module",
    "kernels/kernel.cu": "import of no module",
    "kernels/kernel.cuh": "import of no module",
}
ALWAYS = {"__init__.py", "loss.py", "logits/__init__.py"}
ROWS = {"shared/__init__.py", "shared/rows.py", "shared/reduction.py"}


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("plain", set()),
        ("eager", ROWS),
        ("compiled", {"logits/eager.py"} | ROWS),
        ("lazy", {f"kernels/kernel.{suffix}" for suffix in ("py", "cpp", "cu", "cuh")}),
        ("beside", {"logits/eager.py", "shared/chunks.py"} | ROWS),
        ("broken", set()),
    ],
)
def test_they_are_its_own_and_all_that_it_imports(tmp_path: Path, name, imported) -> None:
    for file, text in FILES.items():
        path = tmp_path / "impls" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = sources(tmp_path, f"logits.{name}")
    expected = ALWAYS | {f"logits/{name}.py"} | imported
    assert {path.relative_to("impls").as_posix() for path in found} == expected


def test_a_comment_or_a_docstring_is_no_code(tmp_path: Path) -> None:
    versions = {
        "plain": 'def cross_entropy(x):\n    "The loss."\n    return x',
        "words": '"""A file."""\n\ndef cross_entropy(x):\n    "Its value."  # of x\n    return x',
        "other": "def cross_entropy(x):\n    return 2 * x",
        "broken": "def cross_entropy(x:",
        "also broken": "def cross_entropy(y:",
    }
    code = {}
    for version, text in versions.items():
        file = tmp_path / version / "impls" / "logits" / "mine.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        code[version] = sources(tmp_path / version, "logits.mine")
    assert code["plain"] == code["words"] != code["other"]
    assert code["broken"] != code["also broken"]


def test_our_compiled_loss_is_also_of_eager_and_of_no_chunks() -> None:
    found = {path.as_posix() for path in sources(ROOT, "logits.compiled")}
    assert {"impls/logits/eager.py", "impls/shared/reduction.py", "impls/loss.py"} <= found
    assert "impls/shared/chunks.py" not in found
