"""Every implementation, what it supports, and whether it is available here."""

import argparse
import itertools
import json
import signal
import sys
from typing import Any

import torch

import impls


def describe(name: str) -> dict[str, Any]:
    """One implementation as JSON shows it; "unavailable" says why, and is null if it is not."""
    try:
        loss = impls.load(name)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, impls.Unavailable):  # a bug, which must not hide the others
            reason = f"{type(error).__name__}: {reason}"
        return {"name": name, "level": name.partition(".")[0], "unavailable": reason}
    return {
        "name": loss.name,
        "level": loss.level,
        "summary": loss.summary,
        "devices": loss.support.devices,
        "devices_here": [device for device in loss.support.devices if is_here(device)],
        "dtypes": {device: loss.support.dtypes_on(device) for device in loss.support.devices},
        "overwrites_input": loss.support.overwrites_input,
        "even_slices": loss.support.even_slices,
        "deviations": {
            device: loss.support.deviations_on(device) for device in loss.support.devices
        },
        "options": loss.options,
        "unavailable": None,
    }


def is_here(device: str) -> bool:
    return device != "cuda" or torch.cuda.is_available()


def table(found: list[dict[str, Any]]) -> str:
    """A line for each implementation, under its level."""
    lines = []
    width = max(len(str(one["name"])) for one in found)
    for one in found:
        if one["unavailable"] is not None:
            lines.append(f"{one['name']:{width}}  not available here: {one['unavailable']}")
            continue
        lines.append(f"{one['name']:{width}}  {one['summary']}")
        dtypes = by_device({device: ", ".join(of) for device, of in one["dtypes"].items()})
        lines.append(
            f"{'':{width}}    available on {' and '.join(one['devices_here']) or 'no device here'}"
            f" (of {', '.join(one['devices'])}) in {dtypes}"
        )
        lines.append(f"{'':{width}}    takes {', '.join(one['options'])}")
        if one["overwrites_input"]:
            lines.append(f"{'':{width}}    overwrites its input")
        if one["even_slices"]:
            lines.append(f"{'':{width}}    takes slices as torch.chunk cuts them")
        for check in dict.fromkeys(itertools.chain(*one["deviations"].values())):
            of_device = {device: of.get(check, "") for device, of in one["deviations"].items()}
            lines.append(f"{'':{width}}    deviates, {check}: {by_device(of_device)}")
    return "\n".join(lines)


def by_device(texts: dict[str, str]) -> str:
    """What is said of each device, once where it is the same on all."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{text} on {device}" for device, text in texts.items() if text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m impls", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    found = [describe(name) for name in impls.names()]
    print(json.dumps(found, indent=2) if arguments.json else table(found))
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end as others do where `head` has seen enough
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
