"""Targets that are no revision of this clone: packages, folders, other clones."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.__main__ import main
from benchmarks.compare import packages, targets
from benchmarks.compare.cli import parse

PACKAGE = "a_package_of_losses"
LOSSES = """
import torch
from .helper import softmax

class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target):
        p = softmax(input.float())
        ctx.save_for_backward(p, target, torch.zeros(KEPT, dtype=torch.uint8))
        ctx.dtype = input.dtype
        return -p.gather(1, target[:, None]).log().mean().to(input.dtype)

    @staticmethod
    def backward(ctx, grad):
        p, target, _ = ctx.saved_tensors
        p = p.clone()
        p[torch.arange(len(p)), target] -= 1
        p *= grad.float() / len(p)
        return (p.half() if ctx.dtype == torch.bfloat16 else p).mul(SCALE).to(ctx.dtype), None

def fused_ce(input, target):
    return Loss.apply(input, target)
"""
APART = """
import torch.nn.functional as F
def plain_ce(input, target):
    return F.cross_entropy(input, target)
"""
HELPER = "def softmax(x):\n    return x.softmax(-1)\n"
QUICK = ("--workload", "notebook", "--budget", "1")


def losses(kept: int = 1, scale: str = "1") -> str:
    return LOSSES.replace("KEPT", str(kept)).replace("SCALE", scale)


def write_package(folder: Path, text: str = "", helper: str = HELPER) -> Path:
    package = folder / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    files = {"__init__": "", "losses": text or losses(), "helper": helper, "apart": APART}
    for name, content in files.items():
        (package / f"{name}.py").write_text(content)
    return folder


def wheel(index: Path, version: str, text: str = "", name: str = PACKAGE, needs: str = "") -> None:
    """A wheel in the folder ``index``, made by hand: nothing is installed to build it."""
    info = f"{name}-{version}.dist-info"
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}/__init__.py": "",
        f"{name}/losses.py": text or losses(),
        f"{name}/helper.py": HELPER,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """An index of packages without a network; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def git(repo: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, "-C", str(repo), *arguments], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A stranger's clone: in its second commit, a helper of one loss of two is another."""
    repo = write_package(tmp_path / "theirs")
    git(repo, "init", "-q")
    for helper in (HELPER, HELPER.replace("x.soft", "(x + 0.0).soft")):
        write_package(repo, helper=helper)
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", "a commit")
    return repo


def compare(*arguments: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "compare", *arguments, *QUICK, "--out", os.devnull],
        **{"cwd": cwd, "capture_output": True, "text": True, "timeout": 300},
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_versions_of_a_package_are_compared_to_the_byte_and_in_half_precision(
    index, capsys
) -> None:
    wheel(index, "1.0")
    wheel(index, "1.1", losses(2, "(1.1 if ctx.dtype == torch.bfloat16 else 1)"))
    both = (f"{PACKAGE}==1.0", f"{PACKAGE}==1.1")
    code, out, errors = compare(*both)  # it finds the package's loss itself
    assert code == 1, errors
    assert f"packages that differ: {packages.canonical(PACKAGE)} 1.0 → 1.1\n" in out
    name = f"{PACKAGE}.losses:fused_ce"
    assert f"| {name} | peak_memory |" in out
    assert "| +1 bytes | **regressed** |" in out
    assert f"| {name} | error |" in out
    assert f"| {name} | error in bfloat16 | " in out
    assert out.count("**wrong**") == 1
    assert out.count("**right**") == 1
    assert f"| {name} | forward_backward |" in out  # it is right in float32
    assert main(["compare", "--clean"]) == 0
    assert capsys.readouterr().out.startswith("removed 2 environments, ")
    assert not packages.cache().exists()


@pytest.mark.slow
def test_a_package_that_the_first_process_imports_gets_processes_of_its_own(index) -> None:
    """psutil is such a package. A process that has it would never see the other version."""
    for version in ("99.0", "99.1"):
        wheel(index, version, name="psutil")
    code, _, errors = compare("psutil==99.0", "psutil==99.1", "--impl", "logits.builtin")
    assert code == 2
    assert "AttributeError: module 'psutil' has no attribute" in errors


@pytest.mark.slow
def test_a_changed_helper_measures_the_losses_that_import_it(clone) -> None:
    code, out, errors = compare("--repo", str(clone), "HEAD~1", "HEAD")
    assert code in (0, 1), errors
    assert f"| {PACKAGE}.losses:fused_ce | forward_backward |" in out
    assert "plain_ce" not in out


def test_a_module_that_a_revision_lacks_is_not_taken_from_elsewhere(clone, capsys) -> None:
    """Both sides would measure the installed module, and find no difference."""
    name = "torch.nn.functional:cross_entropy"
    assert main(["compare", "--repo", str(clone), "HEAD~1", "HEAD", "--impl", name]) == 2
    assert "HEAD~1 has no file of the module torch.nn.functional\n" in capsys.readouterr().err


def test_losses_of_source_trees_that_differ(clone, tmp_path) -> None:
    def changed(base: str, head: str, name: str) -> list[str]:
        both = {"base": base, "head": head}
        found = targets.open_targets(both, tmp_path / name, clone).values()
        return targets.changed(*found)

    fused, plain = f"{PACKAGE}.losses:fused_ce", f"{PACKAGE}.apart:plain_ce"
    assert changed("HEAD~1", "HEAD", "revisions") == [fused]
    assert changed("HEAD", ".", "the same") == []
    (clone / PACKAGE / "apart.py").write_text(
        APART.replace("(input, target)\n", "(input, target + 0)\n")
    )
    assert changed("HEAD", ".", "working tree") == [plain]
    folder = write_package(tmp_path / "folder" / "src").parent
    assert changed(str(folder), ".", "folder") == [plain, fused]


def test_only_a_name_that_is_no_revision_is_a_folder(clone, monkeypatch, tmp_path) -> None:
    write_package(tmp_path / "here" / "main")
    write_package(tmp_path / "here" / "other")
    monkeypatch.chdir(tmp_path / "here")
    git(clone, "branch", "-M", "main")
    for number, (name, is_commit) in enumerate(
        [("main", True), ("./main", False), ("other", False)]
    ):
        target = targets.open_target(name, tmp_path / str(number), clone, whole=False)
        assert bool(target.commit) is is_commit


@pytest.mark.parametrize(
    ("base", "head", "says"),
    [
        ("PACKAGE==1.0", "PACKAGE==1.0", "are the same packages: there is nothing to compare"),
        ("PACKAGE==3.0", ".", "there is no such version of PACKAGE==3.0; the last are 1.0, 2.0"),
        ("nobody_has==3.0", ".", "has a package nobody_has"),
        ("PACKAGE==", ".", "'PACKAGE==' is no package: write NAME==VERSION"),
        ("PACKAGE==2.0", ".", "PACKAGE==2.0 needs torch 1.0, and another torch is compared only"),
        ("./nowhere", ".", "no folder ./nowhere"),
        ("git+https://nowhere", ".", "write git+URL@REVISION"),
        ("git+file:///nowhere@main", ".", "repository"),
        ("git+https://localhost:9/nowhere@main", ".", "localhost"),
    ],
)
def test_a_target_that_cannot_be_had_is_a_line(
    index, tmp_path, monkeypatch, base, head, says
) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None if name == "uv" else name)
    wheel(index, "1.0")
    wheel(index, "2.0", needs="torch==1.0")
    wheel(index, "1.0", name="torch")
    names = {"base": base.replace("PACKAGE", PACKAGE), "head": head.replace("PACKAGE", PACKAGE)}
    with pytest.raises((targets.UnknownRevision, packages.CannotBuild)) as caught:
        targets.open_targets(names, tmp_path / "targets")
    assert says.replace("PACKAGE", PACKAGE) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(packages.cache().glob("building-*"))


def test_torch_is_compared_where_it_was_asked_for(index, tmp_path) -> None:
    wheel(index, "1.0", name="torch")
    names = {"base": "torch==1.0", "head": "."}
    base, head = targets.open_targets(names, tmp_path / "targets").values()
    assert targets.differences(base, head) == [f"torch 1.0 → {packages.installed('torch')}"]
    same = {"machine": "here", "driver": ""}
    found = {"base": same | {"torch": "1.0"}, "head": same | {"torch": "2.0"}}
    both = {"base": base, "head": head}
    assert targets.what_torch_changes(both, found) == {"torch": "1.0 → 2.0", "driver": ""}
    assert targets.what_torch_changes({"base": head, "head": head}, found) == {}


def test_a_package_of_a_repository_at_a_tag(index, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # which turns isolation off
    repo = write_package(tmp_path / "theirs")
    project = f'[project]\nname = "{PACKAGE}"\nversion = "1.0"\n'
    (repo / "pyproject.toml").write_text(f"{project}[tool.setuptools]\npackages = ['{PACKAGE}']\n")
    git(repo, "init", "-q")
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "a commit")
    git(repo, "tag", "v1")
    found = packages.package_set([f"git+file://{repo}@v1"])
    assert found is not None
    assert [*found.modules] == [PACKAGE]
    [line] = found.lock
    assert line.startswith(f"{PACKAGE} @ git+file://{repo}@")


def test_what_is_here_needs_no_environment_and_what_was_built_is_kept(index, monkeypatch) -> None:
    assert packages.package_set([f"psutil=={packages.installed('psutil')}"]) is None
    wheel(index, "1.0")
    made = packages.package_set([f"{PACKAGE}==1.0"])
    monkeypatch.setattr(packages, "build", lambda *_: pytest.fail("it was built again"))
    assert packages.package_set([f"{PACKAGE}==1.0"]) == made


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_it_builds_it_leaves_no_half_environment(
    index, tmp_path, monkeypatch, how
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "pip.py").write_text("import time\ntime.sleep(60)\n")
    (slow / "uv").write_text(f"#!/bin/sh\nexec {sys.executable} {slow}/pip.py\n")
    (slow / "uv").chmod(0o755)
    code = "from benchmarks.compare.packages import package_set; package_set(['x==1'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": f"{slow}:{ROOT}"},
    )
    while not list(packages.cache().glob("building-*/log")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(30) != 0
    if how == signal.SIGKILL:  # it could not, so the next process does
        wheel(index, "1.0")
        packages.package_set([f"{PACKAGE}==1.0"])
    assert not list(packages.cache().glob("building-*"))


def test_a_base_is_needed_unless_the_cache_is_emptied(capsys) -> None:
    assert parse(["--clean"]).base is None
    with pytest.raises(SystemExit):
        parse([])
    assert "BASE is missing" in capsys.readouterr().err
