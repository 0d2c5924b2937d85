"""Records a call of a loss in a training script: what ``benchmarks.capture`` does.

Python reports each call of a function to ``Recorder``, with the arguments by name. So a loss is
seen under whatever name the script has imported it, and no function is replaced.
"""

import fcntl
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import impls
from benchmarks.workloads.files import DEFAULTS, MISSING, VECTORS, write_recording
from impls.loss import FUNCTIONS

# The level of each loss that is seen, by module and function.
LEVELS = {
    ("torch.nn.functional", "cross_entropy"): "logits",
    ("torch.nn.functional", "linear_cross_entropy"): "linear",
    ("impls.loss", "linear_cross_entropy"): "linear",  # Loss.as_linear
    **{
        (f"impls.{name}", FUNCTIONS[level]): level
        for name in impls.names()
        if (level := name.partition(".")[0]) != "sharded"
    },
}
COLUMNS = 32  # of the logits, by which equal rows are found


class NotCaptured(RuntimeError):
    """No call was recorded; the message says why."""


@contextmanager
def recording(path: Path, step: int, head: nn.Module | None) -> Iterator[None]:
    """As ``benchmarks.capture``."""
    if importlib.util.find_spec("safetensors") is None:
        raise NotCaptured(MISSING)
    if not path.parent.is_dir():
        raise NotCaptured(f"no folder {path.parent}")
    previous = sys.getprofile()
    recorder = Recorder(path, step, head, previous)
    with alone(path):
        hook = None if head is None else head.register_forward_hook(recorder.see_head)
        sys.setprofile(recorder)
        try:
            yield
        finally:
            sys.setprofile(previous)
            if hook is not None:
                hook.remove()
    recorder.check_written()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Raise ``NotCaptured`` if another recording to ``path`` is open on this machine."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except BlockingIOError:
            raise NotCaptured(
                f"another recording to {path} is open: record on one rank, or give each rank a "
                "path of its own"
            ) from None
        try:
            yield
        finally:
            Path(lock.name).unlink(missing_ok=True)


class Recorder:
    """Counts the calls of losses, and writes the call number ``step`` to ``path``."""

    def __init__(self, path: Path, step: int, head: nn.Module | None, previous: Any):
        self.path, self.step, self.head = path, step, head
        self.previous = previous  # the profiler to go back to
        self.calls = 0
        self.inside: FrameType | None = None  # the loss that runs: what it calls does not count
        self.seen: tuple[Tensor, Tensor] | None = None  # input and output of the head

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame is self.inside:
            self.inside = None
        if event != "call" or self.inside is not None:
            return
        level = LEVELS.get((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        if level is None or not is_plain(frame.f_locals["input"]):
            return
        self.inside = frame
        self.calls += 1
        if self.calls == self.step + 1:
            self.record(level, dict(frame.f_locals))
            sys.setprofile(self.previous)

    def see_head(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.calls == self.step and is_plain(output):
            self.seen = inputs[0].detach(), output.detach()

    def record(self, level: str, given: dict[str, Any]) -> None:
        if isinstance(given.get("options"), dict):  # of Loss.as_linear
            given |= given["options"]
        if given.get("size_average") is not None or given.get("reduce") is not None:
            raise NotCaptured("size_average and reduce are not recorded: give the loss a reduction")
        tensors = two_dimensional(level, given["input"], given["target"])
        if level == "logits" and self.head is not None:
            tensors |= self.of_head(self.head, tensors["input"])
        for name in ("linear_weight", *VECTORS):
            if given.get(name) is not None:
                tensors[name] = given[name]
        values = {name: given.get(name, default) for name, default in DEFAULTS.items()}
        # F.linear_cross_entropy has None for the default.
        options = {name: DEFAULTS[name] if of is None else of for name, of in values.items()}
        tensors = {name: of.detach().cpu().contiguous() for name, of in tensors.items()}
        write_recording(self.path, tensors, options)
        print(f"{self.path}: {describe(tensors, options)}", file=sys.stderr)

    def of_head(self, head: nn.Module, logits: Tensor) -> dict[str, Tensor]:
        """The arguments of a linear loss that makes the same (N, V) ``logits`` as ``head``."""
        if self.seen is None:
            raise NotCaptured("head was not called before the loss, or it is compiled")
        hidden, output = (tensor.flatten(0, -2) for tensor in self.seen)
        weight, bias = head.get_parameter("weight"), getattr(head, "bias", None)
        found = {"input": hidden[matching_rows(output, logits)], "linear_weight": weight}
        return found if bias is None else {**found, "linear_bias": bias}

    def check_written(self) -> None:
        if not self.calls:
            raise NotCaptured(
                f"no loss was called, so {self.path} was not written. F.cross_entropy, "
                "nn.CrossEntropyLoss, F.linear_cross_entropy and the losses of impls are seen, in "
                "this thread, and if they are not compiled"
            )
        if self.calls <= self.step:
            raise NotCaptured(
                f"the loss was called {self.calls} times, so there was no step {self.step} (the "
                f"first is 0), and {self.path} was not written"
            )


def is_plain(tensor: Any) -> bool:
    """Whether a tensor has numbers. torch.compile calls a loss with tensors that have none."""
    return type(tensor) in (Tensor, nn.Parameter)


def two_dimensional(level: str, input: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Input and target with a row for each token. F.cross_entropy takes (B, V, ...) and (V,)."""
    if target.is_floating_point():
        raise NotCaptured("the targets are probabilities: a recording has class numbers")
    if level == "linear" and input.dim() != 2:
        raise NotCaptured(f"the hidden states must be (N, D): they are {tuple(input.shape)}")
    rows = input[None] if input.dim() == 1 else input.movedim(1, -1).flatten(0, -2)
    return {"input": rows, "target": target.reshape(-1).long()}


def matching_rows(output: Tensor, logits: Tensor) -> Tensor:
    """For each row of ``logits`` (N, V), the number of the row of ``output`` (M, V) that equals it.

    A script may leave out rows, such as the last of each sequence, and convert the dtype.
    """
    columns = torch.linspace(0, output.shape[1] - 1, COLUMNS, device=output.device).long()
    same_width = output.shape[1] == logits.shape[1]
    rows = {tuple(row): number for number, row in enumerate(output[:, columns].tolist())}
    found = [rows.get(tuple(row)) for row in logits[:, columns].tolist()] if same_width else [None]
    if None in found:
        raise NotCaptured(
            f"the loss's input {tuple(logits.shape)} is not the output {tuple(output.shape)} of "
            "head: something changes the logits in between, such as a softcap; without head=, the "
            "logits alone are recorded"
        )
    return torch.tensor(found, device=output.device)


def describe(tensors: dict[str, Tensor], options: dict[str, Any]) -> str:
    """A recording in one line."""
    rows, width = tensors["input"].shape
    weight = tensors.get("linear_weight")
    size = f"{width} logits" if weight is None else f"hidden {width}, vocabulary {len(weight)}"
    ignored = (tensors["target"] == options["ignore_index"]).float().mean()
    changed = [f"{name}={of}" for name, of in options.items() if of != DEFAULTS[name]]
    dtype = str(tensors["input"].dtype).removeprefix("torch.")
    facts = [f"{rows} tokens", f"{ignored:.1%} ignored", size, dtype, *changed]
    return ", ".join(facts)
