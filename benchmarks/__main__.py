"""``python -m benchmarks``: runs the command that the first word names, by default side-by-side."""

import importlib
import os
import signal
import sys
from contextlib import ExitStack

from benchmarks.compare.client import Server
from benchmarks.environment.variables import restart

DEFAULT = "side-by-side"
# Each command: the module whose ``main`` runs it, and what the command does.
COMMANDS = {
    DEFAULT: ("side_by_side.cli", "measure all losses in turn, now (the default command)"),
    "compare": ("compare.cli", "tell whether a change made a loss slower, heavier or wrong"),
    "calibrate": ("compare.calibrate", "measure how often compare is wrong on this machine"),
    "bisect": ("bisect.cli", "find the commit or release that made a loss worse"),
    "watch": ("bisect.watch", "compare the last releases of the packages with losses"),
    "plan": ("plan.cli", "predict memory, operations and least time of each loss at any size"),
    "edge-cases": ("edge_cases", "run each loss in each edge case and say what it does"),
    "history": ("history.cli", "measure each commit that changed a loss"),
    "gpu": ("gpu.cli", "measure everything on a GPU machine, which may lack a network"),
}
HELP = f"""usage: python -m benchmarks [COMMAND] [OPTION ...]

Measure cross-entropy losses on this machine.

commands:
{chr(10).join(f"  {name:14}{what}" for name, (_, what) in COMMANDS.items())}

`python -m benchmarks COMMAND --help` shows the options of a command and examples."""


def main(argv: list[str]) -> int:
    if argv[:1] in (["--help"], ["-h"]):
        print(HELP)
        return 0
    is_command = bool(argv) and not argv[0].startswith("-")
    name, rest = (argv[0], argv[1:]) if is_command else (DEFAULT, argv)
    if name not in COMMANDS:
        print(f"no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        try:
            return run(name, rest)
        finally:
            sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # a reader such as `head` closed the pipe; our own pipes raise another error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(name: str, argv: list[str]) -> int:
    """Run a command and return its exit code. ``main`` handles what the command does not catch."""
    with ExitStack() as stack:
        # The server imports torch, for seconds, at the same time as this process.
        on_cuda = any(word.endswith("cuda") for word in argv)
        servers = [stack.enter_context(Server(on_cuda))] if name == "compare" else []
        command = importlib.import_module(f"benchmarks.{COMMANDS[name][0]}")
        from benchmarks.ranks import torchrun

        if name != DEFAULT and torchrun.is_launched():
            if not torchrun.is_first():
                return 0
            print(f"{name} is not for torchrun: it measures one process", file=sys.stderr)
            return 2
        code: int = command.main(argv, *servers)
        return code


def restart_before_torch(argv: list[str]) -> None:
    """Restart side-by-side with the allocator that it has by default.

    ``side_by_side.cli`` restarts with the allocator that the options name. By then it has imported
    torch, which takes seconds and would be imported again.
    """
    is_default = not argv or argv[0] == DEFAULT or argv[0].startswith("-")
    names_allocator = any(word.startswith("--a") for word in argv)  # argparse completes options
    if is_default and not names_allocator and sys.platform == "linux":
        restart("pinned", [sys.executable, "-m", "benchmarks", *argv])


if __name__ == "__main__":
    restart_before_torch(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
