"""Unpacks wheels that are not installed, for a machine that cannot install them."""

import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path


def unpack(folder: Path, into: Path) -> Iterator[str]:
    """Unpack the wheels of ``folder`` that are not installed here. Yield a line for each wheel.

    The wheels become files, because Triton reads the source of a kernel. An installed package is
    skipped, because a copy on PYTHONPATH would hide it.
    """
    # Imported here, because asv imports this module in an environment without packaging.
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    tags = set(sys_tags())
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        yield f"WHEELS: there is no wheel in {folder}"
    for wheel in wheels:
        try:
            name, _, _, fit = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename as error:
            yield f"WHEELS: passed over {error}"
            continue
        if installed := version(name):
            yield f"WHEELS: {name} {installed} is installed; {wheel.name} is left"
        elif not tags & fit:
            yield f"WHEELS: {wheel.name} is not for this Python"
        else:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into)
            yield f"WHEELS: {wheel.name}"


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
