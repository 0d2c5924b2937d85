"""``impls.load`` of losses that are elsewhere: a file, a function of a module, a broken package."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import impls
from impls.loss import Support


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return str(file)


def test_a_users_file(tmp_path) -> None:
    file = write(
        tmp_path,
        '''
        """Mine."""
        import torch.nn.functional as F
        def cross_entropy(input, target):
            return F.cross_entropy(input, target)
        ''',
    )
    loss = impls.load(file)
    assert (loss.level, loss.name, loss.summary) == ("logits", f"logits.{file}", "Mine.")
    assert loss.options == ()
    assert loss.fn(torch.zeros(2, 4), torch.tensor([1, 2])).item() == pytest.approx(1.3862944)


def test_a_linear_file_may_import_a_cross_entropy(tmp_path) -> None:
    file = write(
        tmp_path,
        """
        from torch.nn.functional import cross_entropy, linear
        def linear_cross_entropy(input, linear_weight, target):
            return cross_entropy(linear(input, linear_weight), target)
        """,
    )
    assert impls.load(file).level == "linear"


def test_a_linear_file_with_a_group_is_sharded(tmp_path) -> None:
    file = write(
        tmp_path,
        """
        def linear_cross_entropy(input, linear_weight, target, *, group=None):
            return input.sum()
        """,
    )
    assert impls.load(file).level == "sharded"


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """A package whose name no other test has imported."""
    name = tmp_path.name
    (tmp_path / name).mkdir()
    write(tmp_path / name, "", "__init__.py")
    write(tmp_path / name, "SCALE = 2", "helper.py")
    write(
        tmp_path / name,
        """
        import torch.nn.functional as F
        from .helper import SCALE
        support = "of something else"
        def fused_ce(input, target, *, ignore_index=-100):
            "Twice."
            return SCALE * F.cross_entropy(input, target, ignore_index=ignore_index)
        def of_states(input, linear_weight, target):
            return F.cross_entropy(F.linear(input, linear_weight), target)
        def across(input, linear_weight, target, *, group=None):
            return of_states(input, linear_weight, target)
        def other_words(h, head, labels, smoothing=0.0):
            return F.cross_entropy(F.linear(h, head), labels, label_smoothing=smoothing)
        def cross_entropy(input, target):
            return fused_ce(input, target)
        number = 3
        class Losses:
            @staticmethod
            def mean(input, target):
                return F.cross_entropy(input, target)
        """,
        "losses.py",
    )
    write(tmp_path / name, "import nobody_has", "needy.py")
    write(tmp_path / name, "x = 1\n1 / 0", "broken.py")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function_of_a_module(package) -> None:
    loss = impls.load(f"{package}.losses:fused_ce")
    assert loss.name == f"logits.{package}.losses:fused_ce"
    assert (loss.level, loss.summary) == ("logits", "Twice.")
    assert (loss.options, loss.support) == (("ignore_index",), Support())
    assert loss.fn(torch.zeros(2, 4), torch.tensor([1, 2])).item() == pytest.approx(2 * 1.3862944)
    assert impls.load(f"{package}.losses:Losses.mean").level == "logits"
    assert impls.load(f"{package}.losses:of_states").level == "linear"
    assert impls.load(f"{package}.losses:across").level == "sharded"
    fixed = impls.load(f"{package}.losses:fused_ce(ignore_index=1)")
    assert fixed.fn(torch.zeros(2, 4), torch.tensor([1, 1])).isnan()


def test_a_level_is_told_where_the_names_of_the_arguments_do_not(package) -> None:
    name = f"{package}.losses:other_words"
    with pytest.raises(impls.UnknownImplementation, match=r"does not tell its level: --level"):
        impls.load(name)
    loss = impls.load(name, level="linear")
    assert (loss.level, loss.options) == ("linear", ("smoothing",))
    x, w, y = torch.randn(3, 5), torch.randn(7, 5), torch.tensor([1, 2, 0])
    expected = impls.load("linear.builtin").fn(x, w, y).item()
    assert loss.fn(input=x, linear_weight=w, target=y).item() == pytest.approx(expected)
    assert loss.fn(x, w, y, smoothing=0.0).item() == pytest.approx(expected)
    with pytest.raises(impls.UnknownImplementation, match=r"is at level logits, not linear"):
        impls.load("logits.eager", level="linear")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("PACKAGE.losses:fusedce", LookupError, "PACKAGE.losses has no fusedce; .* fused_ce"),
        ("PACKAGE.losses:number", LookupError, "PACKAGE.losses:number is no function"),
        ("PACKAGE.loss:fused_ce", LookupError, "there is no module PACKAGE.loss"),
        ("nobody_has.losses:f", LookupError, "there is no module nobody_has"),
        ("PACKAGE.needy:f", impls.Unavailable, "needs the package nobody_has"),
        ("PACKAGE.broken:f", LookupError, "broken.py line 2: ZeroDivisionError: division"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_told_in_a_line(package, name, error, message) -> None:
    with pytest.raises(error, match=message.replace("PACKAGE", package)) as caught:
        impls.load(name.replace("PACKAGE", package))
    assert "\n" not in str(caught.value)


def test_a_file_with_relative_imports_is_a_module_of_its_package(tmp_path) -> None:
    folder = tmp_path / f"of_{tmp_path.name}" / "inner"
    folder.mkdir(parents=True)
    write(folder.parent, "", "__init__.py")
    write(folder.parent, "SCALE = 3", "helper.py")
    text = (
        "from ..helper import SCALE\ndef cross_entropy(input, target): return SCALE * input.sum()"
    )
    loss = impls.load(write(folder, text))
    assert loss.fn(torch.ones(1, 2), None).item() == 6


def test_missing_third_party_package_is_unavailable(tmp_path) -> None:
    file = write(tmp_path, "import a_package_nobody_has\n")
    with pytest.raises(impls.Unavailable, match="needs the package a_package_nobody_has"):
        impls.load(file)


@pytest.mark.parametrize(
    ("package", "file", "reason"),
    [
        ("", "from PACKAGE import a_name", "needs another version of PACKAGE: ImportError: cannot"),
        (
            "1 / 0",
            "import PACKAGE",
            "needs a package that fails here: ZeroDivisionError: division by zero",
        ),
        ("import nobody_has", "import PACKAGE", "needs the package nobody_has"),
        (
            "import PACKAGE.part",
            "import PACKAGE",
            "needs a package that fails here: ModuleNotFoundError",
        ),
        (
            "def f(:",
            "import PACKAGE",
            "needs a package that fails here: SyntaxError: invalid syntax",
        ),
        ("raise OSError('libcuda.so: none')", "import PACKAGE", "OSError: libcuda.so: none"),
    ],
)
def test_a_package_that_fails_makes_it_unavailable(
    tmp_path, monkeypatch, package: str, file: str, reason: str
) -> None:
    """The reason is one line, whatever the package raises."""
    site = tmp_path / "site"
    site.mkdir()
    name = tmp_path.name  # no other test has imported a module of this name
    write(site, package.replace("PACKAGE", name), f"{name}.py")
    monkeypatch.syspath_prepend(site)
    with pytest.raises(impls.Unavailable) as caught:
        impls.load(write(tmp_path, file.replace("PACKAGE", name)))
    assert reason.replace("PACKAGE", name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import impls.nothing", r"line 1: ModuleNotFoundError: No module named 'impls.nothing'"),
        ("import torch.nothing", r"line 1: ModuleNotFoundError: No module named 'torch.nothing'"),
        ("x = 1\n1 / 0", r"line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:", r"line 3: SyntaxError: invalid syntax"),
    ],
)
def test_a_bug_in_a_users_file_is_told_in_a_line(tmp_path, text: str, message: str) -> None:
    with pytest.raises(impls.UnknownImplementation, match=message) as caught:
        impls.load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_bug_in_our_file_is_raised_and_hides_no_other_loss(tmp_path) -> None:
    shutil.copytree(Path(impls.__file__).parent, tmp_path / "impls")
    (tmp_path / "impls" / "logits" / "eager.py").write_text("1 / 0\n")
    run = [sys.executable, "-c", "import impls; impls.load('logits.eager')"]
    errors = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True).stderr
    assert "ZeroDivisionError" in errors
    assert "Unavailable" not in errors
    run = [sys.executable, "-m", "impls"]
    table = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.search(r"logits\.eager\n +not available here: ZeroDivisionError: division", table)
    assert "logits.builtin" in table


def test_a_file_without_a_loss(tmp_path) -> None:
    with pytest.raises(
        impls.UnknownImplementation, match="defines neither cross_entropy nor linear_cross_entropy"
    ):
        impls.load(write(tmp_path, "x = 1"))
