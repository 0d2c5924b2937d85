"""Lines to paste: a line that imports a loss, and a command that measures a cell again."""

import re
import shlex

import pandas as pd

from reports.analysis.pick import Pick, mebibytes
from reports.render.tables import number

# The name of a loss's function, where it is not that of a linear loss.
FUNCTIONS = {"logits": "cross_entropy", "logprobs": "token_logprobs"}


def load_name(impl: str) -> str:
    """The name that ``impls.load`` takes. A row may have a level in front of a path or a loss."""
    name = impl.partition(".")[2]
    if name.startswith("logits."):
        return load_name(name)
    return name if name.partition("(")[0].endswith(".py") else impl


def import_line(impl: str) -> str:
    """A line of Python that imports a loss under the name of its function."""
    level = impl.partition(".")[0]
    function = FUNCTIONS.get(level, "linear_cross_entropy")
    name = load_name(impl)
    if name == impl and re.fullmatch(r"\w+\.\w+", impl):
        return f"from impls.{impl} import {function}"
    in_front = ".as_linear()" if impl.startswith("linear.logits.") else ""
    return f'from impls import load; {function} = load("{name}"){in_front}.fn'


def answer(of: Pick) -> str:
    """A pick as lines of Python: comments with the environment and numbers, then the import."""
    timed = f"{number(of.milliseconds)} ms forward and backward"
    peak = f"peak {mebibytes(of.peak)}"
    if of.planned:
        timed += f" at {of.timed}, the nearest size timed"
        peak += f", planned with torch {of.planned}"
    numbers = f"{timed}; {peak}; gradients within {of.error:.1e}"
    return f"# {of.dtype}, {of.run}\n# {of.impl}: {numbers}\n{import_line(of.impl)}"


def reproduce(of: pd.Series) -> str:
    """The command that measures a row's cell again, at its commit and on its machine."""
    level = of["impl"].partition(".")[0]
    if str(of["source"]).startswith("asv"):
        if of["workload"].startswith("gpt2_text"):
            # asv's own times, one cell after the other, are not in the quick profile.
            cell_of_quick = ("asv", "gpt2_text@256", "float32")
            quick = (of["source"], of["workload"], of["dtype"]) == cell_of_quick
            profile = "" if quick else "BENCHMARK_PROFILE=regular "
        else:
            profile = "BENCHMARK_PROFILE=large "
        cell = ", ".join(f"'{of[name]}'" for name in ("impl", "workload", "dtype"))
        suite = f"{level}.{of['device'].upper().replace(' × ', 'x')}"
        return (
            f"{profile}asv run --launch-method spawn --record-samples "
            f'--bench "{suite}.*{cell}" {of["commit"][:10]}^!'
        )
    if str(of["source"]).startswith("pytest-benchmark of "):
        loss = of["source"].removeprefix("pytest-benchmark of ")
        return f"pytest --benchmark-only --impl {shlex.quote(load_name(loss))}"
    if of["source"] == "Liger-Kernel":
        kernel = of["workload"].partition(" ")[0]
        return f"python benchmark/scripts/benchmark_{kernel}.py  # in a clone of Liger-Kernel"
    name, _, text = of["workload"].partition(":")
    if name in ("file", "config"):  # the name is the option's value, without the path's folders
        name, text = of["workload"], ""
    device, _, ranks = of["device"].partition(" × ")
    words = ["torchrun", "--nproc-per-node", ranks] if ranks else ["python"]
    words += ["-m", "benchmarks", "--workload", name, *(["--text", text] if text else [])]
    words += ["--dtype", of["dtype"], *([] if device == "cpu" else ["--device", "cuda"])]
    words += ["--allocator", "default"] if of["allocator"] == "default" else []
    is_reference = of["impl"].endswith(".reference")
    # A reference is measured with each loss of its level, so the command names a loss.
    losses = [f"{level}.builtin"] if level == "linear" or (is_reference and not ranks) else []
    losses += [] if is_reference else [load_name(of["impl"])]
    for loss in dict.fromkeys(losses):
        words += ["--impl", loss]
    return shlex.join(words)
