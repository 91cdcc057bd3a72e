"""Prompts on the GPU: passes of the prefill engine, small inputs and outputs through pinned memory.

Shapes: B sequences of a pass, S new tokens, K positions whose outputs are wanted, V values of an output, G key/value
heads, T capacity, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from nemotron_runtime.closing import Closing
from nemotron_runtime.executors.batch import Ids, Logits
from nemotron_runtime.executors.tensorrt.cache import DeviceCache
from nemotron_runtime.executors.tensorrt.context import BuiltEngine, Context
from nemotron_runtime.executors.tensorrt.prefill_graphs import PassGraphs, padded_lengths, padded_to
from nemotron_runtime.executors.tensorrt.staging import ID_BYTES, StagedBuffer, Workspace

__all__ = ["PassLimits", "Prefiller", "sub_chunks"]

# of an input's address, as allocations have it
_ALIGNMENT = 256


@dataclass(frozen=True)
class PassLimits:
    """What one pass takes at most: sequences, new tokens of one, and positions of one whose outputs are wanted."""

    sequences: int
    tokens: int
    positions: int


class Prefiller(Closing):
    """Runs the prefill engine; more sequences than it takes go in micro-batches: a pass gets its part of the caches.

    Passes that want one position's outputs per sequence, as generation does, are padded to a few lengths and replayed
    as CUDA graphs, see :class:`PassGraphs`; the others, and those whose padding would run past the cache's end, run as
    long as they are. All share the activations' memory, one pass at a time. Inputs, and the outputs of one
    position per sequence, lie at fixed addresses; the buffer for more grows with what is asked for, and stays.

    Attributes:
        limits: of a pass.
    """

    def __init__(self, space: Workspace, engine: BuiltEngine, output: str, output_size: int) -> None:
        self._space, self._stream, self._engine = space, space.stream, engine
        self._output, self._output_size = output, output_size
        (sequences, tokens), (_, positions) = engine.largest_shape("input_ids"), engine.largest_shape("logits_index")
        self.limits = PassLimits(sequences, tokens, positions)
        self._lengths = padded_lengths(tokens)
        self._caches: dict[str, int] = {}
        self._shape_GTD: tuple[int, ...] = ()
        self._sequence_bytes = 0
        # for passes of any length
        self._any: Context | None = None
        self._graphs = PassGraphs(self._stream, self._context, self._prepare)
        sizes = {"input_ids": sequences * tokens, "query_start": sequences, "logits_index": sequences * positions}
        self._inputs = {name: self._staged(size * ID_BYTES, f"{name} of a pass") for name, size in sizes.items()}
        self._one = self._staged(sequences * output_size * 4, "the logits of a pass")
        self._several: StagedBuffer | None = None
        # the same in every pass
        self._fixed = {**space.weights, **{name: pair.device.address for name, pair in self._inputs.items()}}

    def bind(self, cache: DeviceCache) -> None:
        """Takes the caches; the graphs of other addresses or capacities are dropped."""
        self._stream.synchronize()
        self._graphs.forget()
        self._caches = dict(cache.addresses)
        self._shape_GTD = cache.shape_BGTD[1:]
        self._sequence_bytes = math.prod(self._shape_GTD) * cache.item_bytes

    def micro_batches(self, sequences: int) -> Iterator[tuple[int, int]]:
        """First and last sequence, the latter excluded, of what one pass after the other takes of a request."""
        most = self.limits.sequences
        # a micro-batch's part of a cache begins where an allocation might, as far as the sequences' sizes allow
        aligned = math.lcm(self._sequence_bytes, _ALIGNMENT) // self._sequence_bytes
        step = sequences if sequences <= most else most - most % aligned or most
        for first in range(0, sequences, step):
            yield first, min(first + step, sequences)

    def run(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """Outputs [B, K, V] of a request, see :meth:`PaddedExecutor.forward`, by as many passes as they take."""
        found = []
        for first, last in self.micro_batches(len(query_start_B)):
            # those of a micro-batch may all be shorter than another's
            longest = max(1, int(query_length_B[first:last].max()))
            ids_bS, index_bK = input_ids_BS[first:last, :longest], logits_index_BK[first:last]
            run = partial(self._run, first)
            found.append(_run_in_sub_chunks(run, ids_bS, query_start_B[first:last], index_bK, self.limits.positions))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _run(self, first: int, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids) -> Logits:
        """One pass, inside :attr:`limits`, of a request's sequences from ``first`` on: outputs [B, K, V]."""
        logits = self._launch(input_ids_BS, query_start_B, logits_index_BK, first)
        logits_BKV = np.empty((*logits_index_BK.shape, self._output_size), np.float32)
        logits.fetch(logits_BKV, self._stream)
        return logits_BKV

    def close(self) -> None:
        self._graphs.close()
        for held in (self._any, self._several):
            if held is not None:
                held.close()
        self._any = self._several = None

    def _staged(self, size: int, what: str) -> StagedBuffer:
        return self._space.held.enter_context(StagedBuffer(self._space.device, size, what))

    def _launch(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids, first: int) -> StagedBuffer:
        """Gives a pass to the stream; returns where its logits will be."""
        B, S = input_ids_BS.shape
        K = logits_index_BK.shape[1]
        assert self.limits.sequences >= B, "cut before"
        assert self.limits.tokens >= S, "cut before"
        assert self.limits.positions >= K, "cut before"
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
        made = self._engine.context(self._space)
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
        if K == 1:
            return self._one
        size = B * K * self._output_size * 4
        if self._several is not None and self._several.device.size < size:
            self._several.close()
            self._several = None
        if self._several is None:
            self._several = StagedBuffer(self._space.device, size, "the logits of a pass")
        return self._several


def _run_in_sub_chunks(
    run: Callable[[Ids, Ids, Ids], Logits], input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids, most: int
) -> Logits:
    """All outputs [B, K, V], by passes of at most ``most`` of a sequence: ``run`` of arrays like the three given."""
    if logits_index_BK.shape[1] <= most:
        return run(input_ids_BS, query_start_B, logits_index_BK)
    logits_BKV: Logits = np.zeros(0, np.float32)
    for first, last in sub_chunks(logits_index_BK, input_ids_BS.shape[1], most):
        inside_BK = (logits_index_BK >= first) & (logits_index_BK < last)
        wanted = [np.unique(row[inside]) for row, inside in zip(logits_index_BK, inside_BK, strict=True)]
        index_Bk = np.zeros((len(wanted), max(map(len, wanted))), np.int64)
        for b, positions in enumerate(wanted):
            index_Bk[b, : len(positions)] = positions - first
        found_BkV = run(input_ids_BS[:, first:last], query_start_B + first, index_Bk)
        if not logits_BKV.size:
            logits_BKV = np.zeros((*logits_index_BK.shape, found_BkV.shape[-1]), np.float32)
        for b, positions in enumerate(wanted):
            logits_BKV[b, inside_BK[b]] = found_BkV[b, np.searchsorted(positions, logits_index_BK[b, inside_BK[b]])]
    return logits_BKV


def sub_chunks(logits_index_BK: Ids, tokens: int, most: int) -> Iterator[tuple[int, int]]:
    """Cuts a pass of ``tokens`` positions so that no sequence wants more than ``most`` outputs of a piece.

    Gives (first, last) of each piece, the last one excluded; they cover all positions, in order.
    """
    rows = [np.unique(row) for row in logits_index_BK]
    first = 0
    while first < tokens:
        last = tokens
        for positions in rows:
            ahead = positions[positions >= first]
            if len(ahead) > most:
                last = min(last, int(ahead[most]))
        yield first, last
        first = last
