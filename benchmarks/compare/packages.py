"""Packages of other versions, each set in a folder of its own that is put in front of the path.

pip resolves what is asked for in the environment that is here, so a set holds only the packages
whose version differs from this environment. A set is kept in a cache, by what was asked for and
what is installed here. It is built under another name and then renamed, so no half one is found.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PIN = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]+\])?==[\w.+!-]+")
UNREACHABLE = re.compile(
    r"connection (error|broken|refused)|NewConnectionError|NameResolution|Max retries|timed out"
    r"|Could not resolve host|dns error|error sending request|Failed to establish",
    re.IGNORECASE,
)
SAID_EVERY = 10.0  # seconds
ERROR = re.compile(r"(ERROR|error|fatal|cause): |[×╰─▶]+ ")  # of pip, git and uv
BUILDING = "building-"


class CannotBuild(LookupError):
    """The packages cannot be had; the message says why, in one line."""


@dataclass(frozen=True)
class PackageSet:
    """Packages in ``folder``: the version of each, and the modules that they bring."""

    folder: Path = field(compare=False)
    lock: tuple[str, ...]
    versions: dict[str, str]
    modules: dict[str, str]  # a module at the top, and the line of the lock that it is from


def package_set(asked: Sequence[str]) -> PackageSet | None:
    """The packages that were ``asked`` for, and what they need. None if all of them are here.

    Each is "name==version" or "git+URL@revision". Raises ``CannotBuild``.
    """
    asked = [exact(one) for one in asked]
    folder = cache() / key(asked)
    if not (folder / "lock.txt").exists():
        build(asked, folder)
    lock = (folder / "lock.txt").read_text().splitlines()
    return read(folder, lock) if lock else None


def read(folder: Path, lock: Sequence[str]) -> PackageSet:
    versions, modules = {}, {}
    lines = {canonical(re.split("==| @ ", line)[0]): line for line in lock}
    for distribution in importlib.metadata.distributions(path=[str(folder / "packages")]):
        name = canonical(distribution.name)
        versions[name] = distribution.version
        for file in distribution.files or []:
            top = Path(file.parts[0])
            if top.suffix in ("", ".py", ".so") and top.name not in ("..", "bin", "__pycache__"):
                modules[top.name.partition(".")[0]] = lines.get(name, distribution.version)
    return PackageSet(folder / "packages", tuple(lock), versions, modules)


def installed(name: str) -> str:
    """The version that is installed here, or "none"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def has_pip() -> bool:
    """Asked of the metadata: after ``find_spec("pip")`` setuptools cannot be imported any more."""
    return installed("pip") != "none"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cross-entropy-bench" / "environments"


def clean() -> str:
    """Remove all package sets, and say what was removed."""
    folder = cache()
    sets = list(folder.glob("*"))
    size = bytes_in(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return f"removed {len(sets)} environments, {size / 1e6:,.0f} MB, from {folder}"


def key(asked: Sequence[str]) -> str:
    """It depends on what was asked for, and on all that decides what else must be installed."""
    here = sorted(f"{one.name}=={one.version}" for one in importlib.metadata.distributions())
    parts = [*sorted(asked), "", sys.version, platform.platform(), *here]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def exact(asked: str) -> str:
    """``asked`` with a commit in place of a branch or a tag, which may move."""
    if not asked.startswith("git+"):
        return asked
    url, at, revision = asked.removeprefix("git+").rpartition("@")
    if not at or "://" not in url:
        raise CannotBuild(f"{asked}: write git+URL@REVISION")
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return asked
    done = subprocess.run(
        ["git", "ls-remote", "--", url, revision, f"{revision}^{{}}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
    )
    if done.returncode:
        raise CannotBuild(why(done.stderr, [asked]))
    if not done.stdout.strip():
        raise CannotBuild(f"{asked}: there is no branch or tag {revision!r} at {url}")
    *_, last = done.stdout.strip().splitlines()  # the commit of a tag comes after the tag
    return f"git+{url}@{last.split()[0]}"


def build(asked: Sequence[str], folder: Path) -> None:
    """Make the package set in ``folder``. If it fails or is interrupted, nothing is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder.parent)
    prefix = f"{BUILDING}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
        made = Path(name)
        (made / "tmp").mkdir()
        (made / "set" / "packages").mkdir(parents=True)
        print(f"resolving {', '.join(asked)}", file=sys.stderr)
        installer = Uv(made) if shutil.which("uv") else Pip(made)
        lock = installer.resolve(asked)
        if lock:  # without the name in front of a URL: pip refuses it before file:///
            print(f"building an environment with {', '.join(lock)}", file=sys.stderr)
            what = [line.partition(" @ ")[2] or line for line in lock]
            installer.install(what, made / "set" / "packages")
        (made / "set" / "lock.txt").write_text("".join(f"{line}\n" for line in lock))
        with suppress(OSError):  # another process was faster
            (made / "set").rename(folder)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed have left."""
    for left in folder.glob(f"{BUILDING}*"):
        try:
            os.kill(int(left.name.removeprefix(BUILDING).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (PermissionError, ValueError):
            continue


class Pip:
    """Asks pip which packages differ from those that are here, and installs these alone."""

    def __init__(self, folder: Path) -> None:
        if not has_pip():
            raise CannotBuild("neither uv nor pip is here to install packages with")
        self.folder = folder
        self.pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]

    def resolve(self, asked: Sequence[str]) -> list[str]:
        report = self.folder / "report.json"
        options = ["--dry-run", "--retries", "1", "--report", str(report)]
        run([*self.pip, "install", *options, "--", *asked], self.folder, asked)
        return sorted(map(requirement, json.loads(report.read_text())["install"]))

    def install(self, lock: Sequence[str], folder: Path) -> None:
        options = ["--no-deps", "--no-warn-conflicts", "--target", str(folder)]
        run([*self.pip, "install", *options, "--", *lock], self.folder, lock)


def requirement(item: dict[str, Any]) -> str:
    """A line of a lock, from a package in pip's report."""
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    if not item.get("is_direct"):
        return f"{name}=={version}"
    source = item["download_info"]
    commit = source.get("vcs_info", {}).get("commit_id")
    return f"{name} @ git+{source['url']}@{commit}" if commit else f"{name} @ {source['url']}"


class Uv:
    """As ``Pip``, with uv."""

    LINE = re.compile(r"^ \+ (\S+?)==(\S+)(?: \(from (.+)\))?$", re.MULTILINE)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uv = ["uv", "pip", "install", "--python", sys.executable]

    def resolve(self, asked: Sequence[str]) -> list[str]:
        said = run([*self.uv, "--dry-run", "--", *asked], self.folder, asked)
        found = self.LINE.findall(said)
        return sorted(f"{name} @ {url}" if url else f"{name}=={of}" for name, of, url in found)

    def install(self, lock: Sequence[str], folder: Path) -> None:
        options = ["--no-deps", "--target", str(folder)]
        run([*self.uv, *options, "--", *lock], self.folder, lock)


def run(command: Sequence[str], folder: Path, asked: Sequence[str]) -> str:
    """Run an installer, show how far it is, and return what it said. Raises ``CannotBuild``."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | {"TMPDIR": str(folder / "tmp"), "GIT_TERMINAL_PROMPT": "0"},
            start_new_session=True,  # so that Ctrl-C reaches it once, with its own processes
        )
    try:
        wait(process.poll, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise CannotBuild(why(said, asked))
    return said


def wait(poll: Callable[[], int | None], folder: Path) -> None:
    """Wait until ``poll()`` has a result. Say every ten seconds how large ``folder`` is."""
    start = said = time.monotonic()
    while poll() is None:
        time.sleep(0.05)
        if (now := time.monotonic()) - said > SAID_EVERY:
            said = now
            size = f"{bytes_in(folder) / 1e6:,.0f} MB"
            print(f"building: {now - start:.0f} s, {size}", file=sys.stderr, flush=True)


def why(said: str, asked: Sequence[str]) -> str:
    """Why an installer failed, in one line."""
    names = ", ".join(asked)
    missing = re.search(r"satisfies the requirement (\S+).*\(from versions: (.*)\)", said)
    if UNREACHABLE.search(said):
        return f"{names}: the network, or what it asks for there, cannot be reached"
    if missing and missing[2] == "none":
        return f"{names}: no index has a package {re.split('[=@ ]', missing[1])[0]} for this Python"
    if missing:
        last = missing[2].split(", ")[-5:]
        return f"{names}: there is no such version of {missing[1]}; the last are {', '.join(last)}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    line = ERROR.sub("", (errors or lines or ["it said nothing"])[-1])
    return f"{names} cannot be installed: {line}"


def bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.lstat().st_size
    return total
