"""Reads clocks, temperature and throttling of the GPU from NVIDIA's management library.

Without the package ``nvidia-ml-py``, the state is not known.
"""

import importlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Reading(NamedTuple):
    """The state of a card at one moment."""

    sm: int  # MHz
    memory: int  # MHz
    temperature: int  # °C
    throttled: bool


class Card:
    """The current CUDA device. Raises ``nvml.NVMLError`` if the library does not know it."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties().uuid).removeprefix("GPU-")
        self.handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self.driver = nvml.nvmlSystemGetDriverVersion()
        self.limit = nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000  # W
        # Reasons that lower the clocks for a while. Fixed clocks and an idle card do not count.
        self.throttles = (
            nvml.nvmlClocksEventReasonSwPowerCap
            | nvml.nvmlClocksEventReasonHwSlowdown
            | nvml.nvmlClocksEventReasonSwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwThermalSlowdown
            | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
        )

    def read(self) -> Reading:
        """The state now. Raises ``nvml.NVMLError``."""
        nvml, handle = self.nvml, self.handle
        reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        return Reading(
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            bool(reasons & self.throttles),
        )

    def try_read(self) -> Reading | None:
        """The state now, or None if the library does not answer this time."""
        try:
            return self.read()
        except self.nvml.NVMLError:
            return None

    def describe(self, readings: Sequence[Reading]) -> str:
        """The driver, the power limit, and the medians of ``readings``, in words."""
        sm, memory, temperature, _ = map(statistics.median_low, zip(*readings, strict=True))
        throttled = sum(reading.throttled for reading in readings)
        return (
            f"driver {self.driver}, SM {sm} MHz, memory {memory} MHz, {temperature} °C, "
            f"limit {self.limit:.0f} W, throttled {throttled} of {len(readings)}"
        )


def card(device: str) -> Card | None:
    """The current card; None on a CPU, or if its state is not known."""
    if device != "cuda":
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        current = Card(nvml)
        current.read()
    except (nvml.NVMLError, AttributeError):  # not permitted, or the library is too old
        return None
    return current
