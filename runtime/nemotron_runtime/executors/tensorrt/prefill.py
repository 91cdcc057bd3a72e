"""Prompts on the GPU: passes of the prefill engine, small inputs and outputs through pinned memory.

Shapes: B sequences of a pass, S new tokens, K positions whose outputs are wanted, V values of an output, G key/value
heads, T capacity, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nemotron_runtime.cuda import Device, Stream
from nemotron_runtime.executors.batch import Ids, Logits
from nemotron_runtime.executors.tensorrt.context import BuiltEngine, Context
from nemotron_runtime.executors.tensorrt.prefill_graphs import PassGraphs, padded_lengths, padded_to
from nemotron_runtime.executors.tensorrt.staging import ID_BYTES, StagedBuffer

__all__ = ["PassLimits", "Prefiller"]

# of an input's address, as allocations have it
_ALIGNMENT = 256


@dataclass(frozen=True)
class PassLimits:
    """What one pass takes at most.

    Attributes:
        sequences: of a request.
        tokens: new ones of a sequence.
        positions: of a sequence whose outputs are wanted.
    """

    sequences: int
    tokens: int
    positions: int


class Prefiller:
    """Runs the prefill engine; more sequences than it takes go in micro-batches: a pass gets its part of the caches.

    Passes that want one position's outputs per sequence, as generation does, are padded to a few lengths and replayed
    as CUDA graphs, see :class:`PassGraphs`; the others, and those whose padding would run past the cache's end, run as
    long as they are. All share the activations' memory, one pass at a time. Inputs, and the outputs of one
    position per sequence, lie at fixed addresses; the buffer for more grows with what is asked for, and stays.

    Args:
        device: the GPU.
        stream: of all work of the executor.
        engine: the prefill engine.
        addresses: of its weights.
        memory: address and bytes of the activations.
        output: name of the engine's output.
        output_size: V.

    Attributes:
        limits: of a pass.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engine: BuiltEngine,
        addresses: Mapping[str, int],
        memory: tuple[int, int],
        output: str,
        output_size: int,
    ) -> None:
        self._device, self._stream, self._engine, self._memory = device, stream, engine, memory
        self._output, self._output_size = output, output_size
        (sequences, tokens), (_, positions) = engine.largest_shape("input_ids"), engine.largest_shape("logits_index")
        self.limits = PassLimits(sequences, tokens, positions)
        self._lengths = padded_lengths(tokens)
        self._caches: dict[str, int] = {}
        self._shape_GTD: tuple[int, ...] = ()
        self._sequence_bytes = 0
        # for passes of any length
        self._any: Context | None = None
        self._graphs = PassGraphs(stream, self._context, self._prepare)
        self._inputs: dict[str, StagedBuffer] = {}
        self._several: StagedBuffer | None = None
        self._one: StagedBuffer | None = None
        sizes = {"input_ids": sequences * tokens, "query_start": sequences, "logits_index": sequences * positions}
        try:
            for name, size in sizes.items():
                self._inputs[name] = StagedBuffer(device, size * ID_BYTES, f"{name} of a pass")
            self._one = StagedBuffer(device, sequences * output_size * 4, "the logits of a pass")
        except BaseException:
            self.close()
            raise
        # the same in every pass
        self._fixed = {**addresses, **{name: pair.device.address for name, pair in self._inputs.items()}}

    def bind(self, addresses: Mapping[str, int], shape_BGTD: tuple[int, ...], item_bytes: int) -> None:
        """Takes caches by name; the graphs of other addresses or capacities are dropped.

        Args:
            addresses: of the caches, inputs and outputs.
            shape_BGTD: of each; its B does not matter.
            item_bytes: of a value.
        """
        self._stream.synchronize()
        self._graphs.forget()
        self._caches = dict(addresses)
        self._shape_GTD = shape_BGTD[1:]
        self._sequence_bytes = math.prod(self._shape_GTD) * item_bytes

    def micro_batches(self, sequences: int) -> Iterator[tuple[int, int]]:
        """First and last sequence, the latter excluded, of what one pass after the other takes of a request."""
        most = self.limits.sequences
        # a micro-batch's part of a cache begins where an allocation might, as far as the sequences' sizes allow
        aligned = math.lcm(self._sequence_bytes, _ALIGNMENT) // self._sequence_bytes
        step = sequences if sequences <= most else most - most % aligned or most
        for first in range(0, sequences, step):
            yield first, min(first + step, sequences)

    def run(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids, first: int = 0) -> Logits:
        """One pass of a request's sequences from ``first`` on: outputs [B, K, V], an array of the caller's own.

        B, S and K are inside :attr:`limits`, and ``first`` is what :meth:`micro_batches` gave.
        """
        logits = self._launch(input_ids_BS, query_start_B, logits_index_BK, first)
        logits_BKV = np.empty((*logits_index_BK.shape, self._output_size), np.float32)
        logits.device.download(logits.pinned.address, logits_BKV.nbytes, self._stream)
        self._stream.synchronize()
        np.copyto(logits_BKV, logits.pinned.array(np.float32, logits_BKV.shape))
        return logits_BKV

    def close(self) -> None:
        """Frees graphs, contexts and buffers. Twice is allowed."""
        self._graphs.close()
        if self._any is not None:
            self._any.close()
            self._any = None
        for pair in (*self._inputs.values(), self._one, self._several):
            if pair is not None:
                pair.close()
        self._inputs.clear()
        self._one = self._several = None

    def _launch(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids, first: int) -> StagedBuffer:
        """Gives a pass to the stream; returns where its logits will be."""
        B, S = input_ids_BS.shape
        K = logits_index_BK.shape[1]
        assert self.limits.sequences >= B, "cut by the executor"
        assert self.limits.tokens >= S, "cut by the executor"
        assert self.limits.positions >= K, "cut by the executor"
        length = None
        if K == 1:
            length = padded_to(S, self._lengths, self._shape_GTD[1] - int(query_start_B.max()))
        self._inputs["input_ids"].upload(input_ids_BS, length or S, self._stream)
        self._inputs["query_start"].upload(query_start_B[:, None], 1, self._stream)
        self._inputs["logits_index"].upload(logits_index_BK, K, self._stream)
        logits = self._logits(B, K)
        if length is not None:
            self._graphs.run(first, B, length)
            return logits
        if self._any is None:
            self._any = self._context()
        self._prepare(self._any, first, B, S, K)
        self._any.run(self._stream)
        return logits

    def _context(self) -> Context:
        made = self._engine.context(self._stream, *self._memory)
        made.bind(self._fixed)
        return made

    def _prepare(self, context: Context, first: int, B: int, S: int, K: int = 1) -> None:
        ahead = first * self._sequence_bytes
        context.bind({name: address + ahead for name, address in self._caches.items()})
        context.bind({self._output: self._logits(B, K).device.address})
        context.shape({"input_ids": (B, S), "query_start": (B,), "logits_index": (B, K)})
        # an updated cache is its input's memory, and has no shape to be told
        context.shape({name: (B, *self._shape_GTD) for name in self._caches if name in self._engine.inputs})

    def _logits(self, B: int, K: int) -> StagedBuffer:
        assert self._one is not None, "closed"
        if K == 1:
            return self._one
        size = B * K * self._output_size * 4
        if self._several is not None and self._several.device.size < size:
            self._several.close()
            self._several = None
        if self._several is None:
            self._several = StagedBuffer(self._device, size, "the logits of a pass")
        return self._several
