"""What the commands of ``python -m benchmarks`` are all asked, and what they refuse in one line."""

import argparse
from typing import Any

import impls
from benchmarks.common import Unmeasurable
from benchmarks.side_by_side import PASSES
from benchmarks.workloads import WORKLOADS, UnknownWorkload

USER_ERRORS = (impls.UnknownImplementation, UnknownWorkload, Unmeasurable, OSError)

OPTIONS: dict[str, dict[str, Any]] = {
    "--impl": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "a name that `python -m impls` lists, or a file's path (repeatable; all, if none)",
    },
    "--workload": {"metavar": "NAME[@TOKENS]", "help": ", ".join(WORKLOADS)},
    "--dtype": {"default": "float32", "choices": ("float64", "float32", "bfloat16", "float16")},
    "--device": {"default": "cpu", "choices": ("cpu", "cuda")},
    "--pass": {"dest": "passes", "action": "append", "choices": PASSES},
}


def add(parser: argparse.ArgumentParser, option: str, **otherwise: Any) -> None:
    """Have ``parser`` take ``option``, but for what is ``otherwise`` here."""
    parser.add_argument(option, **OPTIONS[option] | otherwise)
