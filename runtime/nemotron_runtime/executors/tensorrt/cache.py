"""The KV caches on the GPU: one device buffer, kept from request to request where it fits.

Shapes: B sequences, G key/value heads, T capacity, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_formats.cache import CacheSpec, round_capacity
from nemotron_formats.dtypes import item_bytes

from nemotron_runtime.closing import Closing
from nemotron_runtime.cuda import Device, DeviceBuffer, Stream

__all__ = ["DeviceCache"]

_ALIGNMENT = 256


class DeviceCache(Closing):
    """Keys and values of every layer, [B, G, T, D] each, B and T as large as the largest request since it was made.

    Args:
        device: the GPU.
        stream: of all work of the executor.
        caches: what to hold.
        max_seq_len: T at most.
        fixed_capacity: T where the engines take no other; None where they take any.

    Attributes:
        addresses: of each cache, by the names of inputs and outputs.
        shape_BGTD: of each.
        item_bytes: of a value.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        caches: Sequence[CacheSpec],
        max_seq_len: int,
        fixed_capacity: int | None = None,
    ) -> None:
        self._device, self._stream, self._caches = device, stream, caches
        self._max_seq_len, self._fixed_capacity = max_seq_len, fixed_capacity
        self.item_bytes = item_bytes(caches[0].dtype)
        self._buffer: DeviceBuffer | None = None
        self.addresses: dict[str, int] = {}
        self.shape_BGTD = caches[0].shape(0, 0)

    def reset(self, sequences: int, capacity: int) -> bool:
        """Fills it with zeros for a new request; makes another buffer where the request does not fit.

        Returns:
            Whether addresses or shape changed.

        Raises:
            ResourceError: too little GPU memory; there is no cache then.
        """
        if fits := (sequences <= self.shape_BGTD[0] and capacity <= self.shape_BGTD[2]):
            assert self._buffer is not None
        else:
            self._make(sequences, self._fixed_capacity or round_capacity(capacity, self._max_seq_len))
        assert self._buffer is not None
        self._buffer.zero(self._stream)
        return not fits

    def close(self) -> None:
        """Frees it. Twice is allowed."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None
        self.shape_BGTD = self._caches[0].shape(0, 0)
        self.addresses = {}

    def _make(self, sequences: int, capacity: int) -> None:
        self._stream.synchronize()
        # first, so that both need not fit
        self.close()
        stride = -(-self._caches[0].bytes(sequences * capacity) // _ALIGNMENT) * _ALIGNMENT
        what = f"the KV cache of {sequences} sequences of {capacity} tokens"
        self._buffer = self._device.allocate(stride * len(self._caches), what)
        self.shape_BGTD = self._caches[0].shape(sequences, capacity)
        for i, cache in enumerate(self._caches):
            # in place: an output is its input's memory
            self.addresses[cache.input_name] = self.addresses[cache.output_name] = self._buffer.address + i * stride
