"""How fast a GPU moves its memory: device-to-device copies of a buffer that no cache holds."""

from __future__ import annotations

from contextlib import ExitStack

from nemotron_runtime.closing import Closing
from nemotron_runtime.cuda.device import Device

__all__ = ["COPY_METHOD", "CopyBandwidth"]

COPY_METHOD = "device-to-device copies, which read and write each byte: both count; the fastest of three passes"

# H100's second-level cache holds 50 MB; the two buffers are far above it
_BUFFER_BYTES = 1 << 30
_PASSES = 3
_COPIES = 8


class CopyBandwidth(Closing):
    """The probe: call it for bytes per second, read and written ones together, the fastest of three passes.

    What only reads can be faster than what copies by a few percent, because memory need not turn around.

    ``device`` stays open as long as this; ``buffer_bytes`` are those of each of the two buffers.
    """

    def __init__(self, device: Device, buffer_bytes: int = _BUFFER_BYTES) -> None:
        self.buffer_bytes = buffer_bytes
        self._device = device
        self._held = ExitStack()
        hold = self._held.enter_context
        self._buffers = [hold(device.allocate(buffer_bytes, "the bandwidth probe")) for _ in range(2)]
        self._events = [hold(device.event(timing=True)) for _ in range(2)]
        # the first to close, which waits for its work
        self._stream = hold(device.stream())
        for buffer in self._buffers:
            buffer.zero(self._stream)
        self._stream.synchronize()

    def __call__(self) -> float:
        self._device.make_current()
        source, target = self._buffers
        began, ended = self._events
        fastest = float("inf")
        for _ in range(_PASSES):
            began.record(self._stream)
            for _ in range(_COPIES):
                self._device.driver(
                    "MemcpyDtoDAsync", target.address, source.address, self.buffer_bytes, self._stream.handle
                )
            ended.record(self._stream)
            ended.wait()
            fastest = min(fastest, ended.seconds_since(began))
        return 2 * _COPIES * self.buffer_bytes / fastest

    def close(self) -> None:
        self._held.close()
