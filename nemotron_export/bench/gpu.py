"""The backends' GPU: what it is, whether their weights fit, and how fast it moves its memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Self

from nemotron_runtime.cuda import CopyBandwidth, Device

from nemotron_export.bench.backends.base import BackendSpec, check_memory

__all__ = ["Gpu"]


class Gpu:
    """Opened where a backend computes on the GPU; backends have contexts of their own.

    Call it once per round: it keeps what the probe measured.

    Args:
        buffer_bytes: of the bandwidth probe's two buffers.

    Raises:
        MissingDependencyError: no cuda-python, driver or GPU.
        ResourceError: too little GPU memory for the weights of all.
    """

    def __init__(self, specs: Sequence[BackendSpec], buffer_bytes: int = 1 << 30) -> None:
        self._measured: list[float] = []
        with ExitStack() as stack:
            self._device = stack.enter_context(Device())
            free, total = self._device.memory()
            found = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB of GPU memory"
            check_memory(specs, "cuda", free, found, self._device.name, buffers=2 * buffer_bytes)
            self._probe = stack.enter_context(closing(CopyBandwidth(self._device, buffer_bytes)))
            self._opened = stack.pop_all()

    def __call__(self) -> None:
        """Measures the bandwidth once more."""
        self._measured.append(self._probe())

    def measured(self, rounds: int) -> list[float]:
        """Bytes per second of the last rounds."""
        return self._measured[-rounds:]

    def describe(self) -> dict[str, Any]:
        """Name, architecture, driver and memory, as the document has them."""
        return {
            "name": self._device.name,
            "architecture": self._device.architecture,
            "cuda_driver": self._device.driver_version,
            "memory_bytes": self._device.memory()[1],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
