"""``python -m benchmarks gpu``: all that a GPU can be asked, stage by stage, unattended."""

from benchmarks.gpu.cli import main

__all__ = ["main"]
