"""Prompts on the GPU: passes of the prefill engine, small inputs and logits through pinned memory.

Shapes: B rows, S new tokens, K positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemotron_runtime.cuda import Device, Stream
from nemotron_runtime.sessions.tensorrt_engine import Context, Engine
from nemotron_runtime.sessions.tensorrt_prefill_graphs import PassGraphs, padded_lengths, padded_to

__all__ = ["PassLimits", "Prefiller"]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

_ID_BYTES = 8


@dataclass(frozen=True)
class PassLimits:
    """What one optimization profile of the prefill engine takes at most.

    Attributes:
        profile: its number.
        rows: of a pass.
        tokens: new ones of a row.
        positions: of a row whose logits are wanted.
    """

    profile: int
    rows: int
    tokens: int
    positions: int


class _Pair:
    """Device and pinned memory of an input or output."""

    def __init__(self, device: Device, size: int, what: str) -> None:
        self.device = device.allocate(size, what)
        try:
            self.pinned = device.pinned(size)
        except BaseException:
            self.device.close()
            raise

    def upload(self, array_BS: Ids, width: int, stream: Stream) -> None:
        """Copies ids to the device, rows of ``width`` of them, zeros behind."""
        B, S = array_BS.shape
        padded = self.pinned.array(np.int64, (B, width))
        padded[:, :S] = array_BS
        padded[:, S:] = 0
        self.device.upload(self.pinned.address, padded.nbytes, stream)

    def close(self) -> None:
        self.device.close()
        self.pinned.close()


class Prefiller:
    """Runs the prefill engine.

    Passes that want one position's logits per row, as generation does, are padded to a few lengths and replayed as
    CUDA graphs, see :class:`PassGraphs`; the others, and those whose padding would run past the cache's end, run as
    long as they are. All share the activations' memory, one pass at a time. Inputs, and the logits of one position
    per row, lie at fixed addresses; the buffer for more logits grows with what is asked for, and stays.

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
        self._device, self._stream, self._engine, self._memory = device, stream, engine, memory
        self._output, self._vocab_size = output, vocab_size
        self._limits = _limits_of(engine)
        self._lengths = {each.profile: padded_lengths(each.tokens) for each in self._limits}
        self._caches: dict[str, tuple[int, ...]] = {}
        self._slots = 0
        # by profile: for passes of any length
        self._contexts: dict[int, Context] = {}
        self._graphs = PassGraphs(stream, self._context, self._prepare)
        self._inputs: dict[str, _Pair] = {}
        self._several: _Pair | None = None
        self._one: _Pair | None = None
        rows = max(each.rows for each in self._limits)
        sizes = {
            "input_ids": max(each.rows * each.tokens for each in self._limits),
            "query_start": rows,
            "logits_index": max(each.rows * each.positions for each in self._limits),
        }
        try:
            for name, size in sizes.items():
                self._inputs[name] = _Pair(device, size * _ID_BYTES, f"{name} of a pass")
            self._one = _Pair(device, rows * vocab_size * 4, "the logits of a pass")
        except BaseException:
            self.close()
            raise
        # of a graph's pass; one with more logits binds their buffer
        self._addresses = {**addresses, output: self._one.device.address}
        self._addresses |= {name: pair.device.address for name, pair in self._inputs.items()}

    def bind(self, addresses: Mapping[str, int], shape_BGTD: tuple[int, ...]) -> None:
        """Takes caches by name; the graphs of other addresses or slots are dropped.

        Args:
            addresses: of the caches, inputs and outputs.
            shape_BGTD: of each; its rows do not matter.
        """
        self._stream.synchronize()
        self._graphs.forget()
        self._addresses |= addresses
        for context in self._contexts.values():
            context.bind(addresses)
        # k_cache_out.L is its input's memory, and has no shape to be told
        self._caches = {name: shape_BGTD[1:] for name in addresses if name in self._engine.inputs}
        self._slots = shape_BGTD[2]

    def limits(self, rows: int) -> PassLimits:
        """What a pass of so many rows may take: the profile with the most tokens of those that hold the rows."""
        fitting = [each for each in self._limits if each.rows >= rows]
        assert fitting, f"{rows} rows, more than any profile takes"
        return max(fitting, key=lambda each: each.tokens)

    def run(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids) -> Logits:
        """One pass: logits [B, K, V], an array of the caller's own. S and K are inside :meth:`limits`."""
        logits = self._launch(input_ids_BS, query_start_B, logits_index_BK)
        logits_BKV = np.empty((*logits_index_BK.shape, self._vocab_size), np.float32)
        logits.device.download(logits.pinned.address, logits_BKV.nbytes, self._stream)
        self._stream.synchronize()
        np.copyto(logits_BKV, logits.pinned.array(np.float32, logits_BKV.shape))
        return logits_BKV

    def feed(self, input_ids_BS: Ids, query_start_B: Ids) -> None:
        """One pass whose logits nobody wants."""
        self._launch(input_ids_BS, query_start_B, np.zeros((len(query_start_B), 1), np.int64))
        # its inputs' pinned memory is the next one's
        self._stream.synchronize()

    def close(self) -> None:
        """Frees graphs, contexts and buffers. Twice is allowed."""
        self._graphs.close()
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()
        for pair in (*self._inputs.values(), self._one, self._several):
            if pair is not None:
                pair.close()
        self._inputs.clear()
        self._one = self._several = None

    def _launch(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids) -> _Pair:
        """Gives a pass to the stream; returns where its logits will be."""
        B, S = input_ids_BS.shape
        K = logits_index_BK.shape[1]
        limits = self.limits(B)
        assert limits.tokens >= S, "cut by the session"
        assert limits.positions >= K, "cut by the session"
        length = None
        if K == 1:
            length = padded_to(S, self._lengths[limits.profile], self._slots - int(query_start_B.max()))
        self._inputs["input_ids"].upload(input_ids_BS, length or S, self._stream)
        self._inputs["query_start"].upload(query_start_B[:, None], 1, self._stream)
        self._inputs["logits_index"].upload(logits_index_BK, K, self._stream)
        logits = self._logits(B, K)
        if length is not None:
            self._graphs.run(B, length)
            return logits
        context = self._contexts.get(limits.profile)
        if context is None:
            context = self._contexts[limits.profile] = self._context(B)
            context.bind(self._addresses)
        context.bind({self._output: logits.device.address})
        context.shape(self._shapes(B, S, K))
        context.run(self._stream)
        return logits

    def _context(self, rows: int) -> Context:
        return self._engine.context(self._stream, *self._memory, profile=self.limits(rows).profile)

    def _prepare(self, context: Context, B: int, S: int) -> None:
        context.bind(self._addresses)
        context.shape(self._shapes(B, S, 1))

    def _shapes(self, B: int, S: int, K: int) -> dict[str, tuple[int, ...]]:
        shapes = {"input_ids": (B, S), "query_start": (B,), "logits_index": (B, K)}
        return {**shapes, **{name: (B, *rest) for name, rest in self._caches.items()}}

    def _logits(self, B: int, K: int) -> _Pair:
        assert self._one is not None, "closed"
        if K == 1:
            return self._one
        size = B * K * self._vocab_size * 4
        if self._several is not None and self._several.device.size < size:
            self._several.close()
            self._several = None
        if self._several is None:
            self._several = _Pair(self._device, size, "the logits of a pass")
        return self._several


def _limits_of(engine: Engine) -> tuple[PassLimits, ...]:
    largest = zip(engine.largest_shapes("input_ids"), engine.largest_shapes("logits_index"), strict=True)
    return tuple(PassLimits(i, rows, tokens, positions) for i, ((rows, tokens), (_, positions)) in enumerate(largest))
