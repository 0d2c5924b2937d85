"""A folder of wheels, for a machine that cannot install: what is missing here, unpacked."""

import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path


def unpack(folder: Path, into: Path) -> Iterator[str]:
    """Unpack the wheels of ``folder`` that are not installed here; a line for each wheel.

    They become files, since Triton reads the source of a kernel. A package that is installed is
    skipped: a copy on PYTHONPATH would hide it.
    """
    # Not above: asv imports this module, where there is no packaging.
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
