"""The documentation: its links exist, and its commands are ones that the program takes."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import impls
import impls.__main__
import reports.__main__
from benchmarks import ROOT
from benchmarks.__main__ import COMMANDS, DEFAULT
from benchmarks.workloads import WORKLOADS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Parsed(Exception):
    """A command line was understood; ``arguments`` are what it says."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def command_lines(text: str) -> Iterator[str]:
    """What a page says to type: lines of shell, those after a prompt, and code in a sentence."""
    for language, block in FENCE.findall(text):
        lines = block.splitlines()
        if language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        elif language == "sh":
            yield from lines
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(text: str) -> Iterator[list[str]]:
    """Every command of a page, in words; a scheduler's lines say in quotes what they run."""
    for line in command_lines(text):
        if not re.search(r"\b(python|torchrun|pytest|make)\b", line):
            continue
        words = shlex.split(line, comments=True)
        wrapped = words[words.index("--wrap") + 1].split("&&") if "--wrap" in words else []
        yield from (shlex.split(part) for part in wrapped)
        if not wrapped:
            yield words


def understand(words: list[str]) -> argparse.Namespace:
    """The arguments of ``python -m MODULE …``; nothing is run. A word too many is an error."""
    module, *rest = words
    try:
        if module == "benchmarks":
            is_command = bool(rest) and rest[0] in COMMANDS
            name, rest = (rest[0], rest[1:]) if is_command else (DEFAULT, rest)
            command = importlib.import_module(f"benchmarks.{COMMANDS[name][0]}")
            getattr(command, "parse", command.main)(rest)
        else:
            {"impls": impls.__main__.main, "reports": reports.__main__.main}[module](rest)
    except Parsed as parsed:
        return parsed.arguments
    raise AssertionError(f"{words} was not parsed")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_exist(page: Path) -> None:
    links = LINK.findall(FENCE.sub("", page.read_text()))
    dead = [link for link in links if not re.match(r"[a-z]+:", link) and not leads(page, link)]
    assert not dead, f"links of {page.name} that lead nowhere: {dead}"


def leads(page: Path, link: str) -> bool:
    """Whether a relative link of a page has a file and, if it names one, a heading."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_understood(page: Path, monkeypatch, request) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, argv=None, namespace=None):
        raise Parsed(parse(parser, argv, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page.read_text()):
        if "-m" in words and words[words.index("-m") + 1] in ("impls", "benchmarks", "reports"):
            arguments = vars(understand(words[words.index("-m") + 1 :]))
            check_names(arguments)
        elif "pytest" in words:
            for word in words[words.index("pytest") + 1 :]:
                if word.startswith("--"):
                    request.config.getoption(word.partition("=")[0])  # ValueError: no such option
                if word.startswith("tests"):
                    assert (ROOT / word).exists(), f"no {word}"
        elif words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets or "/" in words[1], f"make has no {words[1]}"


def check_names(arguments: dict) -> None:
    """Losses and workloads that a command names are there. Capitals stand for a name."""
    for key, known in (("impl", impls.names()), ("workload", WORKLOADS)):
        given = arguments.get(key) or []
        for name in given if isinstance(given, list) else [given]:
            base = re.split(r"[@(]", name)[0]
            assert base in known or base.isupper() or base.endswith(".py") or ":" in base, (
                f"no {key} {name}"
            )


def test_readme_is_short() -> None:
    """What a newcomer reads in five minutes. The rest is in docs/, one page a task."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_readmes_training_script_trains() -> None:
    [(_, code)] = [
        block for block in FENCE.findall((ROOT / "README.md").read_text()) if block[0] == "python"
    ]
    model = SimpleNamespace(hidden_states=nn.Embedding(11, 4), lm_head=nn.Linear(4, 11, bias=False))
    tokens, targets = torch.randint(11, (2, 2, 3))  # two sequences of three tokens
    names = {"model": model, "tokens": tokens, "targets": targets}
    exec(code, names)
    logits = model.lm_head(model.hidden_states(tokens)).flatten(0, 1)
    torch.testing.assert_close(names["loss"], F.cross_entropy(logits, targets.flatten()))
    assert model.lm_head.weight.grad.any()
    assert model.hidden_states.weight.grad.any()


def test_every_page_is_in_the_index() -> None:
    listed = LINK.findall((ROOT / "docs" / "README.md").read_text())
    pages = {page.name for page in (ROOT / "docs").glob("*.*") if page.name != "README.md"}
    assert pages <= {link.partition("#")[0] for link in listed}
