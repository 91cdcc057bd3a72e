"""Memory on the device together with pinned memory on the host, through which small arrays go there and come back.

Shapes: B sequences, S tokens of one.
"""

from __future__ import annotations

import numpy as np

from nemotron_runtime.cuda import Device, Event, PinnedBuffer, Stream
from nemotron_runtime.executors.batch import Ids

__all__ = ["ID_BYTES", "StagedBuffer", "StepStaging"]

ID_BYTES = 8


class StagedBuffer:
    """Device and pinned memory of one size, for an input or an output."""

    def __init__(self, device: Device, size: int, what: str) -> None:
        self.device = device.allocate(size, what)
        try:
            self.pinned = device.pinned(size)
        except BaseException:
            self.device.close()
            raise

    def upload(self, array_BS: Ids, width: int, stream: Stream) -> None:
        """Copies ids to the device, ``width`` of each sequence, padded with zeros."""
        B, S = array_BS.shape
        padded = self.pinned.array(np.int64, (B, width))
        padded[:, :S] = array_BS
        padded[:, S:] = 0
        self.device.upload(self.pinned.address, padded.nbytes, stream)

    def close(self) -> None:
        """Frees both. Twice is allowed."""
        self.device.close()
        self.pinned.close()


class StepStaging:
    """Pinned memory of one decode step: what goes in, what comes out, and when it is done."""

    def __init__(self, device: Device, sequences: int) -> None:
        self._pinned: PinnedBuffer = device.pinned(3 * sequences * ID_BYTES)
        self.done: Event = device.event()
        self.tokens, self.start, self.chosen = self._pinned.array(np.int64, (3, sequences))
        self.tokens_at, self.start_at, self.chosen_at = (
            self._pinned.address + i * sequences * ID_BYTES for i in range(3)
        )  # fmt: skip

    def close(self) -> None:
        """Frees it. Twice is allowed."""
        self.done.close()
        self._pinned.close()
