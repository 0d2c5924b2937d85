"""``--help``: the commands are listed, and the examples are what the commands take."""

import argparse
import re
import shlex

import pytest

import impls
from benchmarks.__main__ import COMMANDS, main
from benchmarks.workloads import WORKLOADS


class Parsed(Exception):
    """A command line was understood."""


def test_help_lists_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (\S+)  ", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", ["side-by-side", "plan", "edge-cases", "gpu"])
def test_examples_are_understood(command: str, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text, _, examples = capsys.readouterr().out.partition("examples:\n")
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"\(default:\s+reports/", text)
    assert not re.search(r"\(default:\s+(None|False|\[\])\)", text)
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, argv=None, namespace=None):
        raise Parsed(vars(parse(parser, argv, namespace)))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    lines = examples.splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line)
        words = words[words.index("-m") + 2 :]
        with pytest.raises(Parsed) as parsed:
            main(words)
        [arguments] = parsed.value.args
        for key, names in {"impl": impls.names(), "workload": WORKLOADS}.items():
            given = arguments.get(key) or []
            for name in given if isinstance(given, list) else [given]:
                assert name.partition("@")[0] in [*names, "my_loss.py", "file:run.safetensors"]
