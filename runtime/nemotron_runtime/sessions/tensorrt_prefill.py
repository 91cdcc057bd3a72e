"""Prompts on the GPU: passes of the prefill engine, small inputs and logits through pinned memory.

Shapes: B rows, S new tokens, K positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from nemotron_runtime.cuda import Device, DeviceBuffer, PinnedBuffer, Stream
from nemotron_runtime.sessions.tensorrt_engine import Context, Engine

__all__ = ["Prefiller"]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Prefiller:
    """Runs the prefill engine. Its buffers for logits grow with what is asked for, and stay.

    Args:
        device: the GPU.
        stream: of all work of the session.
        engine: the prefill engine.
        addresses: of its weights.
        memory: address and bytes of the activations.
        output: name of the engine's output.
        vocab_size: V.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engine: Engine,
        addresses: Mapping[str, int],
        memory: tuple[int, int],
        output: str,
        vocab_size: int,
    ) -> None:
        self._device, self._stream, self._output, self._vocab_size = device, stream, output, vocab_size
        self._inputs = engine.inputs
        self._buffers: dict[str, tuple[DeviceBuffer, PinnedBuffer]] = {}
        self._context: Context = engine.context(stream, *memory)
        self._context.bind(addresses)

    def bind(self, addresses: Mapping[str, int], shape_BGTD: tuple[int, ...]) -> None:
        """Takes caches by name: their addresses, and the shape of each, whose rows do not matter."""
        self._context.bind(addresses)
        self._caches = {name: shape_BGTD[1:] for name in addresses if name in self._inputs}

    def run(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids) -> Logits:
        """One pass: logits [B, K, V], an array of the caller's own."""
        inputs = {"input_ids": input_ids_BS, "query_start": query_start_B, "logits_index": logits_index_BK}
        for name, array in inputs.items():
            on_device, pinned = self._buffer(name, array.nbytes)
            pinned.array(np.int64, array.shape)[:] = array
            on_device.upload(pinned.address, array.nbytes, self._stream)
        B, K = logits_index_BK.shape
        logits_BKV = np.empty((B, K, self._vocab_size), np.float32)
        on_device, pinned = self._buffer(self._output, logits_BKV.nbytes)
        self._context.shape({name: array.shape for name, array in inputs.items()})
        self._context.shape({name: (B, *rest) for name, rest in self._caches.items()})
        self._context.run(self._stream)
        on_device.download(pinned.address, logits_BKV.nbytes, self._stream)
        self._stream.synchronize()
        np.copyto(logits_BKV, pinned.array(np.float32, logits_BKV.shape))
        return logits_BKV

    def close(self) -> None:
        """Frees context and buffers. Twice is allowed."""
        self._context.close()
        for pair in self._buffers.values():
            for buffer in pair:
                buffer.close()
        self._buffers.clear()

    def _buffer(self, name: str, size: int) -> tuple[DeviceBuffer, PinnedBuffer]:
        """Device and pinned memory of an input or output, of at least so many bytes, its address bound."""
        pair = self._buffers.get(name)
        if pair is not None and pair[0].size >= size:
            return pair
        for buffer in self._buffers.pop(name, ()):
            buffer.close()
        on_device = self._device.allocate(size, f"{name} of a pass")
        try:
            pinned = self._device.pinned(size)
        except BaseException:
            on_device.close()
            raise
        self._buffers[name] = on_device, pinned
        self._context.bind({name: on_device.address})
        return on_device, pinned
