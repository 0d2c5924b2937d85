"""Stage: measures all losses of one level side by side, at one workload."""

import argparse
import sys

import impls
from benchmarks import options
from benchmarks.side_by_side import cli
from impls.loss import FUNCTIONS

# Losses that are measured with options too: cce's default filter skips too much of random data.
VARIANTS = ("linear.cce(filter_eps=None)",)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.level", description=__doc__)
    parser.add_argument("level", choices=tuple(FUNCTIONS))
    for option in ("--device", "--dtype", "--impl"):
        options.add(parser, option)
    arguments, others = parser.parse_known_args(argv)
    known = (*impls.names(), *(VARIANTS if arguments.device == "cuda" else ()))
    of_level = [name for name in known if name.startswith(f"{arguments.level}.")]
    names = options.available(arguments.impl or of_level, arguments.dtype, arguments.device)
    chosen = [f"--impl={loss.name}" for loss in names]
    if not chosen:
        print(f"no loss of {arguments.level} runs here")
        return 2
    cell = ("--device", arguments.device, "--dtype", arguments.dtype)
    return cli.main([*cell, *others, *chosen])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
