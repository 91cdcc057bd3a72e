"""The backends' GPU: what it is, whether their weights fit, and how fast it moves its memory."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from nemotron_errors import ResourceError
from nemotron_runtime.cuda import CopyBandwidth, Device

from nemotron_export.bench.backends.base import BackendSpec

__all__ = ["Gpu"]


class Gpu:
    """Opened where a backend computes on the GPU; backends have contexts of their own.

    Call it once per round: it keeps what the probe measured.

    Args:
        specs: all backends.
        device: the GPU, which this closes; the first one where None.
        buffer_bytes: of the bandwidth probe's two buffers.

    Raises:
        MissingDependencyError: no cuda-python, driver or GPU.
        ResourceError: too little GPU memory for the weights of all.
    """

    def __init__(self, specs: Sequence[BackendSpec], device: Device | None = None, buffer_bytes: int = 1 << 30) -> None:
        self._device = Device() if device is None else device
        self._measured: list[float] = []
        try:
            self._check_memory([spec for spec in specs if spec.device == "cuda"], 2 * buffer_bytes)
            self._probe = CopyBandwidth(self._device, buffer_bytes)
        except BaseException:
            self._device.close()
            raise

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

    def _check_memory(self, specs: Sequence[BackendSpec], buffers: int) -> None:
        needed, (free, total) = sum(spec.weight_bytes for spec in specs) + buffers, self._device.memory()
        if needed > free:
            raise ResourceError(
                f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB of GPU memory",
                f"{needed / 1e9:.1f} GB for the weights of {len(specs)} backends, which are loaded at once, and the "
                "bandwidth probe",
                "measure fewer of them: fewer bundles, --eager-dtype bfloat16, --eager-cache static",
                where=self._device.name,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._probe.close()
        self._device.close()
