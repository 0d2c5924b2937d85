"""List every implementation: what it does, where it runs, and which options it takes."""

import argparse
import itertools
import json
import shutil
import signal
import sys
import textwrap
from typing import Any

import torch

import impls

# What each level takes, in the order of the list.
CALLS = {
    "logits": "cross_entropy(input, target), of logits",
    "linear": "linear_cross_entropy(input, linear_weight, target), of hidden states",
    "sharded": "linear_cross_entropy(..., group=group), of a split vocabulary",
    "logprobs": "token_logprobs(input, linear_weight, target), log-probabilities",
}


def describe(name: str) -> dict[str, Any]:
    """One implementation, as ``--json`` prints it. "unavailable" is the reason, or None."""
    try:
        loss = impls.load(name)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, impls.Unavailable):  # a bug, which must not hide the other losses
            reason = f"{type(error).__name__}: {reason}"
        return {"name": name, "level": name.partition(".")[0], "unavailable": reason}
    devices = loss.support.devices
    return {
        "name": loss.name,
        "level": loss.level,
        "summary": loss.summary,
        "devices": devices,
        "devices_here": [device for device in devices if is_here(device)],
        "dtypes": {device: loss.support.dtypes_on(device) for device in devices},
        "overwrites_input": loss.support.overwrites_input,
        "even_slices": loss.support.even_slices,
        "deviations": {device: loss.support.deviations_on(device) for device in devices},
        "options": loss.options,
        "unavailable": None,
    }


def is_here(device: str) -> bool:
    return device != "cuda" or torch.cuda.is_available()


def render(descriptions: list[dict[str, Any]], width: int) -> str:
    """The list, by level. Lines are wrapped at ``width`` characters."""
    lines = []
    for level, call in CALLS.items():
        lines += [f"{level}: {call}", ""]
        for description in descriptions:
            if description["level"] != level:
                continue
            lines.append(f"  {description['name']}")
            for fact in facts(description):
                lines += textwrap.wrap(
                    fact, width, initial_indent=" " * 4, subsequent_indent=" " * 6
                )
        lines.append("")
    return "\n".join(lines[:-1])


def facts(description: dict[str, Any]) -> list[str]:
    """What the list says of an implementation, a line each."""
    if description["unavailable"] is not None:
        return [f"not available here: {description['unavailable']}"]
    dtypes = {device: ", ".join(names) for device, names in description["dtypes"].items()}
    lines = [
        description["summary"],
        "runs on "
        + ", ".join(description["devices"])
        + ("" if description["devices_here"] else " (not available here)"),
        f"dtypes: {by_device(dtypes)}",
        f"options: {', '.join(description['options'])}",
    ]
    if description["overwrites_input"]:
        lines.append("overwrites its input")
    if description["even_slices"]:
        lines.append("takes only the slices that torch.chunk makes")
    deviations = description["deviations"]
    for check in dict.fromkeys(itertools.chain(*deviations.values())):
        texts = {device: of_device.get(check, "") for device, of_device in deviations.items()}
        lines.append(f"differs from PyTorch ({check}): {by_device(texts)}")
    return lines


def by_device(texts: dict[str, str]) -> str:
    """The text of each device, named unless the texts of all devices are the same."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"on {device}, {text}" for device, text in texts.items() if text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m impls", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args(argv)
    found = [describe(name) for name in impls.names()]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(render(found, shutil.get_terminal_size().columns - 1))
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end quietly when the reader, such as `head`, closes the pipe
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
