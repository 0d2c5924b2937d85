"""Every implementation, what it supports, and whether it is available here."""

import argparse
import json
import sys
from typing import Any

import torch

import impls


def describe(name: str) -> dict[str, Any]:
    """One implementation as JSON shows it; "unavailable" says why, and is null if it is not."""
    try:
        loss = impls.load(name)
    except impls.Unavailable as reason:
        return {"name": name, "level": name.partition(".")[0], "unavailable": str(reason)}
    return {
        "name": loss.name,
        "level": loss.level,
        "summary": loss.summary,
        "devices": loss.support.devices,
        "devices_here": [device for device in loss.support.devices if is_here(device)],
        "dtypes": loss.support.dtypes,
        "overwrites_input": loss.support.overwrites_input,
        "even_slices": loss.support.even_slices,
        "deviations": loss.support.deviations,
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
        lines.append(
            f"{'':{width}}    available on {' and '.join(one['devices_here']) or 'no device here'}"
            f" (of {', '.join(one['devices'])}) in {', '.join(one['dtypes'])}"
        )
        lines.append(f"{'':{width}}    takes {', '.join(one['options'])}")
        if one["overwrites_input"]:
            lines.append(f"{'':{width}}    overwrites its input")
        if one["even_slices"]:
            lines.append(f"{'':{width}}    takes slices as torch.chunk cuts them")
        for check, deviation in one["deviations"].items():
            lines.append(f"{'':{width}}    deviates, {check}: {deviation}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m impls", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    found = [describe(name) for name in impls.names()]
    print(json.dumps(found, indent=2) if arguments.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
