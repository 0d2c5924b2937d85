"""Workloads from files: a call of a loss that was recorded, and the shape in a model's config.

A recording is a safetensors file. It has the loss's tensors by the names of its arguments, and its
options as JSON in the metadata. Without ``linear_weight``, ``input`` is the logits.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import UnknownWorkload, Workload, split_tokens

MISSING = "a recording needs the package safetensors: pip install safetensors"
METADATA = "cross_entropy_bench"  # the key of the options in a recording's metadata
# The options that are recorded, with the value that means that a loss need not have the option.
DEFAULTS: dict[str, Any] = {
    **{"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0},
    **{"softcap": None, "z_loss": 0.0},
}
VECTORS = ("linear_bias", "weight")
TOKENS = 256  # of a config, as of most named models

# The names that the keys of Hugging Face's configs have. Where a config has several, the first
# counts: OPT's head takes word_embed_proj_dim. A model of several modes has a config of its text.
HIDDEN = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model")
VOCAB = ("vocab_size",)
SOFTCAP = ("final_logit_softcapping", "logits_soft_cap")
NESTED = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class Recording(Workload):
    """A recorded call. Its path is not in its name, as result files are shown to others."""

    path: Path = Path()

    def _arguments(self) -> dict[str, Tensor]:
        with opened(self.path) as file:
            found = {name: file.get_slice(name)[:] for name in file.keys()}  # noqa: SIM118
        for name in ("input", "target"):
            found[name] = found[name][: self.tokens]
        floats = [tensor.dtype for name, tensor in found.items() if name != "target"]
        dtype = functools.reduce(torch.promote_types, floats, torch.float32)
        return {
            name: tensor if name == "target" else tensor.to(dtype) for name, tensor in found.items()
        }


def open_workload(name: str) -> Workload:
    """The workload ``file:PATH[@N]`` or ``config:PATH[@N]``. Raises ``UnknownWorkload``."""
    base, tokens = split_tokens(name)
    kind, _, given = base.partition(":")
    path = Path(given).expanduser()
    if not path.is_file():
        raise UnknownWorkload(f"no file {path}")
    if tokens == 0:
        raise UnknownWorkload(f"{name}: at least 1 token")
    return (read_recording if kind == "file" else read_config)(path, tokens)


def read_recording(path: Path, tokens: int | None) -> Recording:
    with opened(path) as file:
        options = json.loads((file.metadata() or {}).get(METADATA, "null"))
        if options is None:
            raise UnknownWorkload(f"{path} is no recording of benchmarks.capture")
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    recorded, width = shapes["input"]
    if tokens is not None and tokens > recorded:
        raise UnknownWorkload(f"{path} has {recorded} tokens, not {tokens}")
    is_linear = "linear_weight" in shapes
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:8]
    return Recording(
        name=f"file:{path.name}{at(tokens)}",
        tokens=tokens or recorded,
        hidden=width if is_linear else 0,
        vocab=shapes["linear_weight"][0] if is_linear else width,
        options={name: options[name] for name in DEFAULTS if options[name] != DEFAULTS[name]},
        vectors=tuple(name for name in VECTORS if name in shapes),
        file_hash=digest,
        path=path,
    )


def read_config(path: Path, tokens: int | None) -> Workload:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UnknownWorkload(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnknownWorkload(f"{path} is no config: it has no keys")
    for name in NESTED:
        if isinstance(config.get(name), dict):
            config = {**config, **config[name]}
    hidden, vocab = (number(config, keys, path) for keys in (HIDDEN, VOCAB))
    softcap = next((config[key] for key in SOFTCAP if config.get(key)), None)
    of = path.resolve()
    return Workload(
        name=f"config:{of.parent.name}/{of.name}{at(tokens)}",
        tokens=tokens or TOKENS,
        hidden=hidden,
        vocab=vocab,
        options={} if softcap is None else {"softcap": float(softcap)},
        # The name does not tell the shape, on which the numbers depend.
        file_hash=hashlib.sha256(f"{hidden} {vocab} {softcap}".encode()).hexdigest()[:8],
    )


def number(config: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int:
    """The value of the first of ``keys`` that ``config`` has."""
    found = next((config[key] for key in keys if config.get(key) is not None), None)
    if not isinstance(found, int) or found < 1:
        where = f"{path}, also in its {' or '.join(NESTED)}"
        raise UnknownWorkload(f"no positive number at {' or '.join(keys)} in {where}")
    return found


def at(tokens: int | None) -> str:
    return "" if tokens is None else f"@{tokens}"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises ``UnknownWorkload`` if it is none, or safetensors is missing."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise UnknownWorkload(MISSING) from error
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise UnknownWorkload(f"{path} is no safetensors file: {error}") from error


def write_recording(path: Path, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
    """Write a recording. Nothing half-made is left at ``path``."""
    from safetensors.torch import save_file

    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(tensors), half, {METADATA: json.dumps(options)})
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
