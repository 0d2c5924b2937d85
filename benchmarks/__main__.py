"""``python -m benchmarks``: implementations side by side or, as the first word says, a command."""

import importlib
import os
import signal
import sys
from contextlib import ExitStack

from benchmarks.processes import Server

COMMANDS = ("semantics", "compare", "calibrate", "plan", "gpu")


def main(argv: list[str]) -> int:
    is_command = bool(argv) and not argv[0].startswith("-")
    name, rest = (argv[0], argv[1:]) if is_command else ("side_by_side", argv)
    if is_command and name not in COMMANDS:
        print(f"no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        try:
            return run(name, rest, is_command)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `head` has seen enough; a process of ours that died raises otherwise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(name: str, argv: list[str], is_command: bool) -> int:
    """The exit code of ``benchmarks.{name}``. What it does not catch, ``main`` does."""
    with ExitStack() as stack:
        # It imports torch, which takes seconds, while this process does so too.
        on_cuda = any(word.endswith("cuda") for word in argv)
        servers = [stack.enter_context(Server(on_cuda))] if name == "compare" else []
        command = importlib.import_module(f"benchmarks.{name}")
        from benchmarks import lockstep

        if is_command and lockstep.is_launched():
            if not lockstep.is_first():
                return 0
            print(f"{name} is not for torchrun: it measures one process", file=sys.stderr)
            return 2
        code: int = command.main(argv, *servers)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
