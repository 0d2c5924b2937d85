"""The C++ kernel of logits.native: how it is built, and what its backward does."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

import impls
from benchmarks import ROOT
from impls.kernels import cross_entropy as kernel
from impls.loss import Support

CALL = (
    "import torch; from impls.kernels.cross_entropy import losses_and_gradient as fn;"
    "fn(torch.zeros(2, 4), torch.tensor([0, 1]), torch.ones(2), None, None, None, 0.0);"
)


def start(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """A Python process that runs ``code`` with an empty or a given cache of compiled kernels."""
    variables = {**os.environ, "TORCH_EXTENSIONS_DIR": str(cache), **environment}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_of_processes_at_once_one_builds_even_after_one_was_killed(tmp_path) -> None:
    compiler, folder = tmp_path / "c++", tmp_path / "cross_entropy_bench"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    killed = start(CALL, tmp_path, CXX=str(compiler))
    while not list(folder.glob("*/build.ninja")):
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)  # with its compiler
    killed.communicate()
    (tmp_path / "calls").write_text("")
    for process in [start(CALL, tmp_path, CXX=str(compiler)) for _ in range(2)]:
        error = process.communicate(timeout=600)[1]
        assert process.returncode == 0, error
    assert (tmp_path / "calls").read_text().count(" -c ") == 1
    assert len(list(folder.glob("*.so"))) == 1


@pytest.mark.parametrize("name", ["logits.native", "logits.native_in_place", "linear.fused"])
def test_without_a_compiler_it_is_unavailable(name: str, tmp_path) -> None:
    if torch.cuda.is_available() and name == "linear.fused":
        pytest.skip("on CUDA it needs no C++")
    process = start(f"import impls; impls.load({name!r})", tmp_path, CXX="nobodys-c++")
    last = process.communicate()[1].splitlines()[-1]
    assert last == "impls.Unavailable: needs a C++ compiler: there is no nobodys-c++ here"


def test_a_compiled_kernel_needs_no_compiler(monkeypatch) -> None:
    kernel.library()
    monkeypatch.setenv("CXX", "nobodys-c++")
    kernel.check_available()
    subprocess.run([sys.executable, "-c", CALL], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("fails", "reason"),
    [("[ $1 = --version ]", "x.cpp:1:2: error: no such luck"), ("false", "Command .* returned")],
)
def test_a_compiler_that_fails_is_told_in_a_line(fails, reason, tmp_path, monkeypatch) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text(f"#!/bin/sh\necho 'x.cpp:1:2: error: no such luck'\n{fails}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(impls.Unavailable, match=f"compiles its kernel: {reason}") as caught:
        kernel.build(tmp_path / "kernel.so")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "kernel.so").exists()


def test_a_binary_is_of_one_capability(monkeypatch) -> None:
    found = {}
    for capability in ("AVX512", "AVX2", "DEFAULT", "another"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        found[capability] = kernel.binary().name
    assert len(set(found.values())) == 3
    assert found["another"] == found["DEFAULT"]


def test_the_wheel_has_the_source() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["impls.kernels"]
    assert any(kernel.SOURCE.match(pattern) for pattern in patterns)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_it_is_right_with_other_vector_instructions(capability: str) -> None:
    command = [sys.executable, "-m", "pytest", "tests/gate", "-q", "--impl", "logits.native"]
    variables = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("dtype", Support().dtypes)
def test_an_upstream_gradient_of_1_multiplies_nothing(dtype: str) -> None:
    """A multiplication would set a bit in a signalling nan."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[getattr(torch, dtype).itemsize]
    infinity = torch.tensor([torch.inf], dtype=getattr(torch, dtype)).view(integers)
    signalling = (infinity + 1).view(getattr(torch, dtype))
    kernel.scale_(signalling, torch.tensor(1.0))
    assert torch.equal(signalling.view(integers), infinity + 1)
    numbers = torch.randn(1001).to(getattr(torch, dtype))
    expected = 0.75 * numbers
    kernel.scale_(numbers, torch.tensor(0.75))
    assert torch.equal(numbers, expected)


def test_a_second_backward_raises_or_is_right() -> None:
    fn, y = impls.load("logits.native").fn, torch.tensor([1, 2, 3])
    x = torch.randn(3, 50, requires_grad=True)
    value = fn(x, y)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="an earlier backward has taken the gradient"):
        value.backward()
    losses = fn(x, y, reduction="none")
    first, second = (
        torch.autograd.grad(losses, x, torch.ones(3), retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_in_place_with_gaps_between_the_rows() -> None:
    y = torch.tensor([1, 2, 3])
    wide = torch.randn(3, 60)
    before, x = wide.clone(), wide[:, 3:53].requires_grad_()
    exact = wide[:, 3:53].double().requires_grad_()
    value = impls.load("logits.native_in_place").fn(x, y)
    [grad] = torch.autograd.grad(value, x, torch.tensor(3.0))
    [expected] = torch.autograd.grad(3 * torch.nn.functional.cross_entropy(exact, y), exact)
    assert torch.allclose(grad.double(), expected, atol=1e-6)
    assert torch.equal(wide[:, 53:], before[:, 53:])
    assert torch.equal(wide[:, :3], before[:, :3])


def test_a_target_out_of_range_is_not_read() -> None:
    q = torch.tensor([1, 50, 3]), torch.ones(3), None
    with pytest.raises(IndexError, match="target 50 is out of range for 50 classes"):
        kernel.losses_and_gradient(torch.randn(3, 50), *q, None, None, 0.0)
