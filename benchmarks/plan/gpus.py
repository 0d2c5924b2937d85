"""Reads the limits of named GPUs from their data sheets, and the times that the limits imply.

A loss takes at least the largest of three times: its operations divided by the GPU's peak rate of
dense matrix products, the bytes that it moves divided by the memory's bandwidth, and the bytes that
it sends divided by the links' rate one way.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.plan.simulation import Prediction

DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # bytes
    bandwidth: float  # bytes of memory a second
    link: float  # bytes a second to other GPUs, one way
    flops: dict[str, float]  # operations a second in dense matrix products, by dtype

    def least_times(self, prediction: Prediction, dtype: str) -> dict[str, float]:
        """The milliseconds that each limit implies."""
        return {
            "compute_ms": 1e3 * prediction.flops / self.flops[dtype],
            "memory_ms": 1e3 * prediction.moved / self.bandwidth,
            "network_ms": 1e3 * prediction.sent / self.link,
        }


def _read_gpus() -> dict[str, Gpu]:
    with Path(__file__).with_name("gpus.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row["name"]: Gpu(
            row["name"],
            memory=float(row["memory_gib"]) * 2**30,
            bandwidth=float(row["bandwidth_gb_s"]) * 1e9,
            link=float(row["link_gb_s"]) * 1e9,
            flops={dtype: float(row[dtype]) * 1e12 for dtype in DTYPES},
        )
        for row in rows
    }


GPUS = _read_gpus()
