"""Made-up rows, and files as the programs that measure write them."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from reports.analysis import verdicts
from reports.readers.schema import whole

MIB = 2**20
LOSSES = {
    **{
        "linear.reference": (683, 150),
        "linear.builtin": (767, 589),
        "linear.logits.fused": (729, 393),
    },
    **{"linear.cce": (741, 347), "linear.fused": (779, 216), "linear.chunked_vocab": (979, 182)},
    **{
        "logits.reference": (16, 196),
        "logits.builtin": (71, 589),
        "logits.fused_in_place": (42, 0.04),
    },
}


REGRESSED = "c" * 40


def tidy(**changes: object) -> dict[str, object]:
    row = {
        "machine": "box",
        "device": "cpu",
        "hardware": "EPYC",
        "commit": "a" * 40,
        "commit_date": "2026-01-01T00:00:00+00:00",
        "torch": "2.13.0",
        "threads": 2,
        "allocator": "pinned",
        "impl": "logits.eager",
        "workload": "gpt2_text",
        "dtype": "float32",
        "metric": "forward",
        "unit": "ms",
        "value": 12.5,
        "ci_low": 12.0,
        "ci_high": 13.0,
        "n": 9,
    }
    return row | changes


def write_csv(folder: Path, *rows: dict[str, object], name: str = "now.csv") -> Path:
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


def loss(impl: str, ms: float | None, mib: float, **more: object) -> list[dict[str, object]]:
    """The rows of a loss. Without ``ms`` it has no times, as if its gradients were wrong."""
    cell = {"impl": impl, "ci_low": ms, "ci_high": ms} | more
    rows = [tidy(**cell, metric="peak_memory", unit="bytes", value=mib * MIB)]
    rows += [tidy(**cell, metric="error", unit="relative", value=1e-7)]
    return rows + ([] if ms is None else [tidy(**cell, metric="forward_backward", value=ms)])


def sharded(device: str) -> list[dict[str, object]]:
    """The rows of a sharded loss and of the reference."""
    of = {"device": device, "impl": "sharded.fused"}
    reference = of | {"impl": "sharded.reference"}
    least = {"metric": "sent", "unit": "bytes", "value": 2**20}
    share = {"value": 0.7, "ci_low": 0.61, "ci_high": 0.83}
    return [
        tidy(**reference, metric="forward_backward", value=10.0),
        tidy(**reference | least),
        tidy(**of, metric="forward_backward", value=15.0),
        tidy(**of | least | {"value": 3 * 2**20}),
        tidy(**of, metric="collectives", unit="count", value=7),
        tidy(**of | share, metric="overlap", unit="share"),
    ]


def as_read(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Rows as ``read`` gives them."""
    frame = whole(pd.DataFrame(rows), str(rows[0].get("source", "now.csv")))
    frame["threads"] = pd.to_numeric(frame["threads"], errors="coerce")
    return frame


def words(html: str) -> str:
    """The text that a reader sees, with single spaces."""
    body = re.sub(r"<style>.*?</style>|<(title|desc)[^>]*>.*?</\1>", " ", html, flags=re.DOTALL)
    text = re.sub(r"</?(strong|code|a|span|em)\b[^>]*>", "", body)
    text = re.sub(r"<[^>]*>", " ", text)
    return " ".join(text.replace("&#39;", "'").replace("&#34;", '"').split())


def measured(**more: object) -> list[dict[str, object]]:
    return [row for impl, cell in LOSSES.items() for row in loss(impl, *cell, **more)]


def asv_file(folder: Path, commit: str, day: int, ms: float) -> None:
    """Write a commit's results as ``asv run --record-samples`` does."""
    params = [["'logits.eager'", "'logits.fused'"], ["'gpt2_text@256'"], ["'float32'"]]
    samples = [[ms + n / 100 for n in range(7)], [5 + n / 100 for n in range(7)]]
    content = {
        "commit_hash": commit,
        "env_name": "virtualenv-py3.11",
        "date": 1767225600000 + day * 86400000,
        "params": {"machine": "asv box", "torch": "2.13.0", "python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": ["result", "params", "version", "samples"],
        "results": {
            f"logits.CPU.track_forward_backward{suffix}": [
                [float(np.median(one)) for one in samples],
                params,
                "1",
                samples,
            ]
            for suffix in ("", "_multiple")
        },
        "durations": {},
        "version": 2,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{commit[:8]}-env.json").write_text(json.dumps(content))


def pairs() -> pd.DataFrame:
    """Raw pairs of ``python -m benchmarks compare``, for a loss that became 10 % slower."""
    rng = np.random.default_rng(0)
    of = dict.fromkeys(verdicts.PAIR_COLUMNS, "x") | {
        "threads": 2,
        "margin": 0.02,
        "dtype": "float32",
    }
    of |= {"impl": "logits.eager", "metric": "forward_backward", "unit": "ms"}
    roles = {"base": 1.0, "head": 1.1, "control": 1.0, "planted": 1.03}
    rows = [
        of | {"role": role, "pair": pair, "block": n, "value": 10 * ratio * rng.normal(1, 1e-3)}
        for pair in range(10)
        for n, (role, ratio) in enumerate(4 * list(roles.items()))
    ]
    return pd.DataFrame(rows)
