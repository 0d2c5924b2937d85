"""``impls.names``, ``impls.load`` and ``python -m impls``: the filesystem is the registry."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import impls
from impls.loss import FUNCTIONS, Support

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
    "logits.native",
    "logits.native_in_place",
    "logprobs.builtin",
    "logprobs.chunked",
    "logprobs.eager",
    "logprobs.fused",
    "sharded.dtensor",
    "sharded.eager",
    "sharded.fused",
}


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


def test_the_process_group_is_not_an_option() -> None:
    """No text in brackets could name a group, and no table lists it."""
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
    assert loss.fn(x, y, reduction="none").shape == (3,)  # an option of the call wins


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logits.eager(softcap=3)", "no option softcap; there are weight, ignore_index"),
        ("logits.eager(3)", r"only options may be in the brackets, as in \(softcap=30.0\)"),
        ("logits.eager(reduction=)", "only options may be in the brackets"),
        ("logits.eager(reduction=open('x'))", "only options may be in the brackets"),
        ("logits.eagre(reduction='sum')", "did you mean logits.eager"),
    ],
)
def test_options_that_cannot_be_fixed(name: str, message: str) -> None:
    with pytest.raises(impls.UnknownImplementation, match=message):
        impls.load(name)


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "impls", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    run.stdout.close()  # before anything is written: importing torch takes a second
    assert run.communicate()[1] == b""
    assert run.returncode == -signal.SIGPIPE


def test_dtypes_and_deviations_may_differ_on_cuda() -> None:
    support = Support(
        dtypes=("float32", "bfloat16"),
        cuda_dtypes=("bfloat16",),
        deviations={"empty": "raises", "strides": "wrong"},
        cpu_deviations={"confident": "rounds"},
        cuda_deviations={"deterministic": "atomics"},
    )
    assert support.dtypes_on("cpu") == ("float32", "bfloat16")
    assert support.dtypes_on("cuda") == ("bfloat16",)
    everywhere = {"empty": "raises", "strides": "wrong"}
    assert support.deviations_on("cpu") == everywhere | {"confident": "rounds"}
    assert support.deviations_on("cuda") == everywhere | {"deterministic": "atomics"}
    same = Support(dtypes=("float32",), deviations={"empty": "raises"})
    assert same.dtypes_on("cuda") == ("float32",)
    assert same.deviations_on("cuda") == {"empty": "raises"}


def test_impls_readme_has_a_row_for_each_implementation() -> None:
    """A failure shows the row to paste. Without its package, only a loss's name is compared."""
    text = (Path(impls.__file__).parent / "README.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| [")]
    expected = []
    for name in impls.names():
        link = f"| [`{name}`]({name.replace('.', '/')}.py) |"
        try:
            loss = impls.load(name)
        except impls.Unavailable:
            expected += [row for row in rows if row.startswith(link)] or [link]
            continue
        devices, options = ", ".join(loss.support.devices), ", ".join(loss.options)
        expected.append(f"{link} {loss.summary} | {devices} | {options} |")
    assert sorted(rows) == sorted(expected)


def test_the_list_fits_a_terminal_of_80_columns() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "impls"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert [line[2:] for line in lines if re.fullmatch(r"  \S+", line)] == [
        name for level in FUNCTIONS for name in impls.names() if name.startswith(level)
    ]
    assert max(map(len, lines)) < 80
