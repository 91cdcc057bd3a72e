"""Prefill passes of fixed lengths: each in an execution context of its own, and a CUDA graph from its second use on.

Shapes: B sequences, S tokens of a pass, padding included. The sequences are those from ``first`` on of a request.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from nemotron_runtime.cuda import Graph, Stream
from nemotron_runtime.executors.tensorrt.context import Context

__all__ = ["PassGraphs", "padded_lengths", "padded_to"]

_log = logging.getLogger(__name__)

# each holds a context and a graph: some memory of the host, a little of the GPU
_MOST_PASSES = 32
# (step, up to). One sequence of up to some hundred tokens takes as long as reading the weights does, whatever the
# padding; tokens of several sequences add up, though, and from there on time grows with them. From 128 on a step is
# at most a quarter of the tokens, from 512 on a sixteenth on average; finer ones would be more lengths to set up, each
# in two uses.
_STEPS = ((16, 64), (32, 256), (64, 512), (128, 2048), (256, None))


def padded_lengths(most: int) -> tuple[int, ...]:
    """The lengths that passes are padded to, ascending; the last one is ``most``, the engine's limit."""
    lengths: list[int] = []
    length = 0
    for step, end in _STEPS:
        while length + step < most and (end is None or length < end):
            length += step
            lengths.append(length)
    return (*lengths, most)


def padded_to(tokens: int, lengths: tuple[int, ...], room: int) -> int | None:
    """The length that a pass is padded to.

    Args:
        tokens: of the pass.
        lengths: what :func:`padded_lengths` gave; the last is at least ``tokens``.
        room: tokens for which the cache has room after the sequence that holds most. Padding is written like tokens,
            after them: what is past the capacity has no positions in the RoPE tables either.

    Returns:
        The length, or None where the padding does not fit.
    """
    length = lengths[bisect_left(lengths, tokens)]
    return length if length <= room else None


@dataclass
class _Pass:
    """Some sequences at one length. TensorRT bakes shapes into what it launches: the context is the graph's own."""

    context: Context
    ran: bool = False
    graph: Graph | None = None

    def forget(self) -> None:
        """Drops the graph: addresses or shapes change."""
        self.ran = False
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def close(self) -> None:
        self.forget()
        self.context.close()


class PassGraphs:
    """Runs passes by their sequences and length; of more than 32 the one that was not used for longest goes.

    The first use of a pass runs in its context directly: TensorRT sets itself up for the shapes, which cannot be
    recorded. The second records the graph and launches it: recording takes as long as launching kernel by kernel, and
    a length that never comes again is not recorded. Every later use is one launch.

    Args:
        stream: of all work of the executor.
        make: gives a context.
        prepare: binds addresses and sets shapes of a context, for first sequence, sequences and tokens.
    """

    def __init__(
        self, stream: Stream, make: Callable[[], Context], prepare: Callable[[Context, int, int, int], None]
    ) -> None:
        self._stream, self._make, self._prepare = stream, make, prepare
        # least recently used first
        self._passes: dict[tuple[int, int, int], _Pass] = {}

    def run(self, first: int, B: int, S: int) -> None:
        """Gives the pass of B rows of S tokens to the stream; its inputs lie where ``prepare`` bound them."""
        one = self._take(first, B, S)
        if not one.ran:
            self._prepare(one.context, first, B, S)
            one.context.run(self._stream)
            one.ran = True
            return
        if one.graph is None:
            one.graph = self._stream.capture(lambda: one.context.run(self._stream))
            _log.debug("prefill: recorded sequences from %d on, %d of %d tokens", first, B, S)
        one.graph.launch(self._stream)

    def forget(self) -> None:
        """Drops all graphs: addresses or shapes change. Contexts stay; the stream must have done its work."""
        for one in self._passes.values():
            one.forget()

    def close(self) -> None:
        """Frees graphs and contexts. Twice is allowed."""
        for one in self._passes.values():
            one.close()
        self._passes.clear()

    def _take(self, first: int, B: int, S: int) -> _Pass:
        one = self._passes.pop((first, B, S), None)
        if one is None:
            if len(self._passes) >= _MOST_PASSES:
                oldest = next(iter(self._passes))
                _log.debug("prefill: drops sequences from %d on, %d of %d tokens", *oldest)
                self._stream.synchronize()
                self._passes.pop(oldest).close()
            one = _Pass(self._make())
        self._passes[first, B, S] = one
        return one
