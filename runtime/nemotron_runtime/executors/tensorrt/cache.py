"""The KV caches of a TensorRT session: one device buffer, kept from request to request where it fits.

Shapes: B rows, G key/value heads, T cache slots, D head_dim.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from nemotron_formats.dtypes import item_bytes

from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.cuda import Device, DeviceBuffer, Stream

__all__ = ["DeviceCache", "cache_names"]

# slots are rounded up to a multiple: requests of similar lengths share a cache, and its graphs
_SLOTS = 256
_ALIGNMENT = 256


def cache_names(num_layers: int) -> dict[str, str]:
    """The engines' inputs → the outputs that are the same memory."""
    return {f"{kind}_cache.{layer}": f"{kind}_cache_out.{layer}" for layer in range(num_layers) for kind in ("k", "v")}


class DeviceCache:
    """Keys and values of every layer, [B, G, T, D] each, B and T as large as the largest request since it was made.

    Attributes:
        addresses: of each cache, by the names of inputs and outputs.
        shape_BGTD: of each.
        item_bytes: of a value.
    """

    def __init__(self, device: Device, stream: Stream, manifest: Manifest) -> None:
        self._device, self._stream = device, stream
        self._names = cache_names(manifest.model.num_layers)
        self._heads, self._head_dim = manifest.model.num_kv_heads, manifest.model.head_dim
        self.item_bytes = item_bytes(manifest.session.cache_dtype)
        self._max_slots = manifest.limits.max_seq_len
        # of engines that take one number of slots alone
        self._fixed_slots = 0 if manifest.tensorrt is None else manifest.tensorrt.cache_capacity
        self._buffer: DeviceBuffer | None = None
        self.addresses: dict[str, int] = {}
        self.shape_BGTD = (0, self._heads, 0, self._head_dim)

    def reset(self, rows: int, slots: int) -> bool:
        """Fills it with zeros for a new request; makes another buffer where the request does not fit.

        Returns:
            Whether addresses or shape changed.

        Raises:
            ResourceError: too little GPU memory; there is no cache then.
        """
        if fits := (rows <= self.shape_BGTD[0] and slots <= self.shape_BGTD[2]):
            assert self._buffer is not None
        else:
            # the engines take no more slots than max_seq_len, which need not be a multiple
            self._make(rows, self._fixed_slots or min(-(-slots // _SLOTS) * _SLOTS, self._max_slots))
        assert self._buffer is not None
        self._buffer.zero(self._stream)
        return not fits

    def close(self) -> None:
        """Frees it. Twice is allowed."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None
        self.shape_BGTD = (0, self._heads, 0, self._head_dim)
        self.addresses = {}

    def _make(self, rows: int, slots: int) -> None:
        self._stream.synchronize()
        # first, so that both need not fit
        self.close()
        size = rows * self._heads * slots * self._head_dim * self.item_bytes
        stride = -(-size // _ALIGNMENT) * _ALIGNMENT
        what = f"the KV cache of {rows} rows of {slots} tokens"
        self._buffer = self._device.allocate(stride * len(self._names), what)
        self.shape_BGTD = (rows, self._heads, slots, self._head_dim)
        for i, (name, output) in enumerate(self._names.items()):
            # in place: an output is its input's memory
            self.addresses[name] = self.addresses[output] = self._buffer.address + i * stride

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
