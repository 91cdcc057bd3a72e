"""One GPU: its primary context, what it is, and what is allocated on it."""

from __future__ import annotations

import threading
from typing import Any

from nemotron_errors import MissingDependencyError, ResourceError
from nemotron_plugins.driver.cuda import Driver, cuda_error, load_driver

from nemotron_runtime.closing import Closing
from nemotron_runtime.cuda.memory import OUT_OF_MEMORY, DeviceBuffer, PinnedBuffer
from nemotron_runtime.cuda.stream import Event, Stream

__all__ = ["Device"]

_NAME_BYTES = 256


class Device(Closing):
    """Retains a GPU's primary context, which PyTorch and TensorRT use too, and makes it current.

    CUDA's current context belongs to a thread: what may be called by another one calls :meth:`make_current` first.
    :meth:`close` releases the context, and makes that current again which was before in the thread that opened it;
    close what was made of the device before.

    Attributes:
        allocated: bytes of its device buffers that are not closed.
        peak: the most that `allocated` was.

    Raises:
        MissingDependencyError: no cuda-python, no driver, or no such GPU.
        ResourceError: the context cannot be made.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self.driver: Driver = load_driver()
        count = self.driver("DeviceGetCount")
        if ordinal >= count:
            remedy = "`nvidia-smi` tells what the driver sees, CUDA_VISIBLE_DEVICES what this process may use"
            raise MissingDependencyError(f"{count} GPUs", f"a GPU number {ordinal}", remedy, where="CUDA")
        self._handle = self.driver("DeviceGet", ordinal)
        self._thread = threading.get_ident()
        self._before: Any = self.driver("CtxGetCurrent")
        self._context: Any = self.driver("DevicePrimaryCtxRetain", self._handle)
        self.allocated = 0
        self.peak = 0
        self.make_current()

    def make_current(self) -> None:
        """Makes the context the calling thread's."""
        assert self._context is not None, "the device is closed"
        self.driver("CtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        """What the driver calls the GPU."""
        raw: bytes = self.driver("DeviceGetName", _NAME_BYTES, self._handle)
        return raw.split(b"\0")[0].decode()

    @property
    def architecture(self) -> str:
        """The compute capability as compilers write it, for example ``sm_90``."""
        return f"sm_{self.attribute('COMPUTE_CAPABILITY_MAJOR')}{self.attribute('COMPUTE_CAPABILITY_MINOR')}"

    @property
    def multiprocessors(self) -> int:
        """Streaming multiprocessors."""
        return self.attribute("MULTIPROCESSOR_COUNT")

    @property
    def driver_version(self) -> str:
        """The newest CUDA that the driver supports, for example ``12.8``."""
        version = int(self.driver("DriverGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"

    def attribute(self, name: str) -> int:
        """``CU_DEVICE_ATTRIBUTE_<name>``."""
        attribute = getattr(self.driver.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.driver("DeviceGetAttribute", attribute, self._handle))

    def memory(self) -> tuple[int, int]:
        """Bytes of GPU memory that are free, and in all."""
        free, total = self.driver("MemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int, what: str) -> DeviceBuffer:
        """Device memory for ``what``, a few words that errors use; see :class:`DeviceBuffer`.

        Raises:
            ResourceError: out of memory, with the numbers.
        """
        assert size > 0, "an empty buffer has no address"
        error, address = self.driver.try_call("MemAlloc", size)
        if error == OUT_OF_MEMORY:
            free, total = self.memory()
            raise ResourceError(
                f"{free / 1e9:.2f} GB free of {total / 1e9:.2f} GB of GPU memory",
                f"{size / 1e9:.2f} GB for {what}, in addition to {self.allocated / 1e9:.2f} GB in use here already",
                "end what else uses the GPU, ask for fewer sequences or tokens, or use a GPU with more memory",
                where=self.name,
            )
        if error is not None:
            raise cuda_error(error, "MemAlloc")
        self.count(size)
        return DeviceBuffer(self.driver, int(address), size, self.count)

    def pinned(self, size: int) -> PinnedBuffer:
        """Host memory that copies read and write without the CPU; see :class:`PinnedBuffer`."""
        return PinnedBuffer(self.driver, size)

    def stream(self) -> Stream:
        """A stream of its own."""
        return Stream(self.driver)

    def event(self, *, timing: bool = False) -> Event:
        """An event."""
        return Event(self.driver, timing=timing)

    def count(self, change: int) -> None:
        """Books bytes that a buffer took (or gave back, below zero)."""
        self.allocated += change
        self.peak = max(self.peak, self.allocated)

    def close(self) -> None:
        """Releases the context; twice is allowed."""
        if self._context is not None:
            context, self._context = self._context, None
            # a thread must not be left with a context that may be gone
            if threading.get_ident() == self._thread and int(self.driver("CtxGetCurrent")) == int(context):
                self.driver("CtxSetCurrent", self._before)
            self.driver("DevicePrimaryCtxRelease", self._handle)
