"""A thin, deterministic layer over CUDA's driver API (cuda-python): device, buffers, streams, events and graphs."""

from __future__ import annotations

from nemotron_plugins.driver.cuda import Driver, load_driver

from nemotron_runtime.cuda.bandwidth import COPY_METHOD, CopyBandwidth
from nemotron_runtime.cuda.device import Device
from nemotron_runtime.cuda.memory import DeviceBuffer, PinnedBuffer
from nemotron_runtime.cuda.stream import Event, Graph, Stream

__all__ = [
    "COPY_METHOD",
    "CopyBandwidth",
    "Device",
    "DeviceBuffer",
    "Driver",
    "Event",
    "Graph",
    "PinnedBuffer",
    "Stream",
    "load_driver",
]
