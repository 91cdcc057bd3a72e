"""Buffers on the device and pinned ones on the host; each is freed once, by close()."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from nemotron_errors import ResourceError
from nemotron_plugins.driver.cuda import Driver, cuda_error

if TYPE_CHECKING:
    from nemotron_runtime.cuda.device import Device
    from nemotron_runtime.cuda.stream import Stream

__all__ = ["DeviceBuffer", "PinnedBuffer"]

_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class _Closing:
    def close(self) -> None:
        raise AssertionError("a subclass frees")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class DeviceBuffer(_Closing):
    """Device memory, aligned to 256 bytes, its contents undefined.

    Attributes:
        address: of its first byte; 0 once closed.
        size: in bytes.

    Raises:
        ResourceError: out of memory, with the numbers.
    """

    def __init__(self, device: Device, size: int, what: str) -> None:
        assert size > 0, "an empty buffer has no address"
        self._device = device
        error, address = device.driver.try_call("MemAlloc", size)
        if error == _OUT_OF_MEMORY:
            free, total = device.memory()
            raise ResourceError(
                f"{free / 1e9:.2f} GB free of {total / 1e9:.2f} GB of GPU memory",
                f"{size / 1e9:.2f} GB for {what}, beside {device.allocated / 1e9:.2f} GB that are in use here already",
                "end what else uses the GPU, ask for fewer rows or tokens, or use a GPU with more memory",
                where=device.name,
            )
        if error is not None:
            raise cuda_error(error, "MemAlloc")
        self.address = int(address)
        self.size = size
        device.count(size)

    def zero(self, stream: Stream, size: int | None = None) -> None:
        """Sets its first ``size`` bytes (all by default) to zero, in the stream's order."""
        self._device.driver("MemsetD8Async", self.address, 0, self.size if size is None else size, stream.handle)

    def upload(self, source: int, size: int, stream: Stream, offset: int = 0) -> None:
        """Copies ``size`` bytes from a host address to ``offset``, in the stream's order."""
        assert offset + size <= self.size, "inside the buffer"
        self._device.driver("MemcpyHtoDAsync", self.address + offset, source, size, stream.handle)

    def download(self, target: int, size: int, stream: Stream, offset: int = 0) -> None:
        """Copies ``size`` bytes from ``offset`` to a host address, in the stream's order."""
        assert offset + size <= self.size, "inside the buffer"
        self._device.driver("MemcpyDtoHAsync", target, self.address + offset, size, stream.handle)

    def close(self) -> None:
        """Frees it once the device has done what uses it; twice is allowed."""
        if self.address:
            address, self.address = self.address, 0
            self._device.count(-self.size)
            self._device.driver("MemFree", address)


class PinnedBuffer(_Closing):
    """Host memory that cannot be swapped out, so that copies run beside the CPU.

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
        if error == _OUT_OF_MEMORY:
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
