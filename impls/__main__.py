"""Every implementation, what it supports, and whether it is available here."""

import argparse
import json
import sys

import impls


def describe(name: str) -> dict[str, object]:
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
        "dtypes": loss.support.dtypes,
        "options": loss.options,
        "unavailable": None,
    }


def table(found: list[dict[str, object]]) -> str:
    """A line for each implementation, under its level."""
    lines = []
    width = max(len(str(one["name"])) for one in found)
    for one in found:
        if one["unavailable"] is not None:
            lines.append(f"{one['name']:{width}}  not available here: {one['unavailable']}")
            continue
        lines.append(f"{one['name']:{width}}  {one['summary']}")
        for key in ("devices", "dtypes", "options"):
            values = one[key]
            assert isinstance(values, tuple)
            lines.append(f"{'':{width}}    {key}: {', '.join(values)}")
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
