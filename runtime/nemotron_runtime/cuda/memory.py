"""Buffers on the device and pinned ones on the host; each is freed once, by close()."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import ResourceError
from nemotron_plugins.driver.cuda import Driver, cuda_error

from nemotron_runtime.closing import Closing
from nemotron_runtime.cuda.stream import Stream

__all__ = ["OUT_OF_MEMORY", "DeviceBuffer", "PinnedBuffer"]

OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class DeviceBuffer(Closing):
    """Device memory, aligned to 256 bytes, its contents undefined; see :meth:`Device.allocate`.

    Args:
        driver: CUDA's driver.
        address: of its first byte.
        size: in bytes.
        count: told the bytes that are given back, below zero.

    Attributes:
        address: of its first byte; 0 once closed.
        size: in bytes.
    """

    def __init__(self, driver: Driver, address: int, size: int, count: Callable[[int], None]) -> None:
        self._driver, self.address, self.size, self._count = driver, address, size, count

    def zero(self, stream: Stream, size: int | None = None) -> None:
        """Sets its first ``size`` bytes (all by default) to zero, in the stream's order."""
        self._driver("MemsetD8Async", self.address, 0, self.size if size is None else size, stream.handle)

    def upload(self, source: int, size: int, stream: Stream, offset: int = 0) -> None:
        """Copies ``size`` bytes from a host address to ``offset``, in the stream's order."""
        assert offset + size <= self.size, "inside the buffer"
        self._driver("MemcpyHtoDAsync", self.address + offset, source, size, stream.handle)

    def download(self, target: int, size: int, stream: Stream, offset: int = 0) -> None:
        """Copies ``size`` bytes from ``offset`` to a host address, in the stream's order."""
        assert offset + size <= self.size, "inside the buffer"
        self._driver("MemcpyDtoHAsync", target, self.address + offset, size, stream.handle)

    def close(self) -> None:
        """Frees it once the device has done what uses it; twice is allowed."""
        if self.address:
            address, self.address = self.address, 0
            self._count(-self.size)
            self._driver("MemFree", address)


class PinnedBuffer(Closing):
    """Host memory that cannot be swapped out, so that copies run while the CPU works.

    Arrays over it (:meth:`array`) die with it: copy what must live longer.

    Attributes:
        address: of its first byte; 0 once closed.
        size: in bytes.

    Raises:
        ResourceError: the system does not give so much.
    """

    def __init__(self, driver: Driver, size: int) -> None:
        assert size > 0
        self._driver = driver
        error, address = driver.try_call("MemHostAlloc", size, 0)
        if error == OUT_OF_MEMORY:
            remedy = "free host memory, or raise the limit on locked memory"
            raise ResourceError("no pinned memory left", f"{size / 1e6:.1f} MB of it", remedy, where="host memory")
        if error is not None:
            raise cuda_error(error, "MemHostAlloc")
        self.address = int(address)
        self.size = size

    def array(self, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
        """An array over its bytes from ``offset`` on."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.address, "the buffer is closed"
        assert offset + size <= self.size, "inside the buffer"
        raw = (ctypes.c_uint8 * size).from_address(self.address + offset)
        return np.frombuffer(raw, dtype).reshape(shape)

    def close(self) -> None:
        """Frees it; twice is allowed."""
        if self.address:
            address, self.address = self.address, 0
            self._driver("MemFreeHost", address)
