"""The filesystem is the registry: names without imports, loading with clear failures."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import impls

OURS = {
    "linear.builtin",
    "linear.chunked_vocab",
    "linear.compiled",
    "linear.fused",
    "logits.builtin",
    "logits.chunked_vocab",
    "logits.compiled",
    "logits.eager",
    "logits.fused",
    "logits.fused_in_place",
    "sharded.dtensor",
    "sharded.eager",
    "sharded.fused",
}


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return str(file)


def test_ours_are_listed_and_available() -> None:
    assert set(impls.names()) >= OURS
    for name in OURS:
        assert impls.load(name).name == name


def test_listing_imports_nothing() -> None:
    code = "import impls, sys; impls.names(); print('impls.logits.eager' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_options_are_the_signature() -> None:
    assert impls.load("logits.eager").options == (
        "weight",
        "ignore_index",
        "reduction",
        "label_smoothing",
    )
    assert "linear_bias" in impls.load("linear.builtin").options


def test_where_it_runs_is_no_option() -> None:
    """A group is no number that could stand in brackets, nor does a table list it."""
    assert "group" not in impls.load("sharded.eager").options
    with pytest.raises(impls.UnknownImplementation, match="no option group; there are linear_bias"):
        impls.load("sharded.eager(group=None)")


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(impls.UnknownImplementation, match=r"did you mean logits\.eager"):
        impls.load("logits.eagre")


def test_a_name_may_fix_options() -> None:
    loss = impls.load("logits.eager(reduction='sum', label_smoothing=0.1)")
    assert loss.name == "logits.eager(reduction='sum', label_smoothing=0.1)"
    x, y = torch.randn(3, 5), torch.tensor([1, 2, 0])
    expected = torch.nn.functional.cross_entropy(x, y, reduction="sum", label_smoothing=0.1)
    assert loss.fn(x, y).item() == pytest.approx(expected.item())
    assert loss.fn(x, y, reduction="none").shape == (3,)  # a caller's own options come first


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("logits.eager(softcap=3)", "no option softcap; there are weight, ignore_index"),
        ("logits.eager(3)", r"in brackets stand options, as in \(softcap=30.0\)"),
        ("logits.eager(reduction=)", "in brackets stand options"),
        ("logits.eager(reduction=open('x'))", "in brackets stand options"),
        ("logits.eagre(reduction='sum')", "did you mean logits.eager"),
    ],
)
def test_options_that_cannot_be_fixed(name: str, lacking: str) -> None:
    with pytest.raises(impls.UnknownImplementation, match=lacking):
        impls.load(name)


def test_a_strangers_file(tmp_path) -> None:
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


def test_missing_third_party_package_is_unavailable(tmp_path) -> None:
    file = write(tmp_path, "import a_package_nobody_has\n")
    with pytest.raises(impls.Unavailable, match="needs the package a_package_nobody_has"):
        impls.load(file)


@pytest.mark.parametrize("text", ["import impls.nothing", "import torch.nothing", "1 / 0"])
def test_a_bug_of_ones_own_stays_loud(tmp_path, text: str) -> None:
    with pytest.raises((ModuleNotFoundError, ZeroDivisionError)) as caught:
        impls.load(write(tmp_path, text))
    assert not isinstance(caught.value, impls.Unavailable)


def test_a_file_without_a_loss_says_what_it_lacks(tmp_path) -> None:
    with pytest.raises(AttributeError, match="defines none of cross_entropy, linear_cross_entropy"):
        impls.load(write(tmp_path, "x = 1"))


def test_the_tables_of_impls_readme_are_those_of_the_command() -> None:
    """What they lack is shown, to paste. Of what is not installed here, the name alone is known."""
    text = (Path(impls.__file__).parent / "README.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| [")]
    due = []
    for name in impls.names():
        link = f"| [`{name}`]({name.replace('.', '/')}.py) |"
        try:
            loss = impls.load(name)
        except impls.Unavailable:
            due += [row for row in rows if row.startswith(link)] or [link]
            continue
        devices, options = ", ".join(loss.support.devices), ", ".join(loss.options)
        due.append(f"{link} {loss.summary} | {devices} | {options} |")
    assert sorted(rows) == sorted(due)
