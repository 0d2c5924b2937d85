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
        with ExitStack() as stack:
            # It imports torch, which takes seconds, while this process does so too.
            on_cuda = any(word.endswith("cuda") for word in rest)
            servers = [stack.enter_context(Server(on_cuda))] if name == "compare" else []
            command = importlib.import_module(f"benchmarks.{name}")
            from benchmarks import lockstep

            if is_command and lockstep.is_launched():
                if not lockstep.is_first():
                    return 0
                print(f"{name} is not for torchrun: it measures one process", file=sys.stderr)
                return 2
            code = command.main(rest, *servers)
            sys.stdout.flush()
            return code
    except OSError as error:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `head` has seen enough: its pipe is broken, not one of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
