"""Decode steps on the GPU: one CUDA graph per number of rows, tokens chosen on the device, one step ahead of the host.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemotron_runtime.cuda import Device, DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from nemotron_runtime.executors.tensorrt.argmax import Argmax
from nemotron_runtime.executors.tensorrt.candidates import TopLogits
from nemotron_runtime.executors.tensorrt.context import Context, Engine
from nemotron_runtime.sampling.candidates import Candidates

__all__ = ["Decoder"]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

_ID_BYTES = 8
# a step in flight, and the one that runs ahead of it
_TURNS = 2


@dataclass
class _Rows:
    """What steps of one number of rows need; the context is its graph's own, as TensorRT wants it."""

    context: Context
    graph: Graph | None = None


class _Turn:
    """Pinned memory of one step: what goes in, what comes out, and when it is done."""

    def __init__(self, device: Device, rows: int) -> None:
        self._pinned: PinnedBuffer = device.pinned(3 * rows * _ID_BYTES)
        self.done: Event = device.event()
        self.tokens, self.start, self.chosen = self._pinned.array(np.int64, (3, rows))
        self.tokens_at, self.start_at, self.chosen_at = (
            self._pinned.address + i * rows * _ID_BYTES for i in range(3)
        )  # fmt: skip

    def close(self) -> None:
        self.done.close()
        self._pinned.close()


@dataclass
class _Ahead:
    """A step that runs before it was asked for: on the tokens that the device itself chose."""

    turn: _Turn
    start: Ids  # [B]
    tokens: Ids  # [B]

    def is_what(self, tokens_B: Ids, start_B: Ids, going_B: npt.NDArray[np.bool_]) -> bool:
        """Whether it computes the step asked for, in the rows that go on."""
        same_B = (self.tokens == tokens_B) & (self.start == start_B)
        return bool(same_B[going_B].all())


class Decoder:
    """Runs the decode engine.

    A step's inputs lie at fixed device addresses. The argmax writes the tokens that it chooses where the next step
    reads its input, so the step after a greedy one is given to the GPU before its tokens are on the host. Where the
    next call asks for just that step, it is running already; where not (a row ended, another request), its result is
    dropped: all it wrote is one slot behind each row, which is written again before it is read.

    Args:
        device: the GPU.
        stream: of all work of the session.
        engine: the decode engine.
        addresses: of its weights.
        memory: address and bytes of the activations.
        argmax: the kernels that choose tokens; None where there are none to choose.
        max_batch: rows at most.
        output: name of the engine's output.
        vocab_size: V.
        top: the kernels that find the largest logits; None where a bundle has none.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engine: Engine,
        addresses: Mapping[str, int],
        memory: tuple[int, int],
        argmax: Argmax | None,
        max_batch: int,
        output: str,
        vocab_size: int,
        top: TopLogits | None = None,
    ) -> None:
        self._device, self._stream, self._engine = device, stream, engine
        self._memory, self._argmax, self._top = memory, argmax, top
        self._addresses, self._shapes = dict(addresses), {}  # type: tuple[dict[str, int], dict[str, tuple[int, ...]]]
        self._by_rows: dict[int, _Rows] = {}
        self._ahead: _Ahead | None = None
        self._next = 0
        self._held: list[DeviceBuffer | PinnedBuffer | _Turn] = []
        try:
            self._tokens = self._hold(device.allocate(max_batch * _ID_BYTES, "the tokens of a step"))
            self._start = self._hold(device.allocate(max_batch * _ID_BYTES, "the positions of a step"))
            self._logits = self._hold(device.allocate(max_batch * vocab_size * 4, "the logits of a step"))
            self._host_logits = device.pinned(max_batch * vocab_size * 4)
            self._held.append(self._host_logits)
            self._turns = [_Turn(device, max_batch) for _ in range(_TURNS)]
            self._held += self._turns
        except BaseException:
            self.close()
            raise
        self._addresses |= {
            "input_ids": self._tokens.address, "query_start": self._start.address, output: self._logits.address
        }  # fmt: skip
        self._logits_BV = np.zeros((0, vocab_size), np.float32)

    def bind(self, addresses: Mapping[str, int], shape_BGTD: tuple[int, ...]) -> None:
        """Takes caches by name; the graphs of other addresses or slots are dropped.

        Args:
            addresses: of the caches, inputs and outputs.
            shape_BGTD: of each; its rows do not matter.
        """
        self._stream.synchronize()
        self.forget()
        for rows in self._by_rows.values():
            if rows.graph is not None:
                rows.graph.close()
                rows.graph = None
        self._addresses |= addresses
        # k_cache_out.L is its input's memory, and has no shape to be told
        self._shapes = {name: shape_BGTD[1:] for name in addresses if name in self._engine.inputs}

    def forget(self) -> None:
        """Drops the step that runs ahead: something else comes between."""
        self._ahead = None

    def step(self, tokens_B: Ids, start_B: Ids) -> Logits:
        """Logits [B, V] behind one token per row; they hold until the next call."""
        self.forget()
        self._launch(tokens_B, start_B)
        return self.logits(len(tokens_B))

    def candidates(self, tokens_B: Ids, start_B: Ids, temperature: float) -> Candidates:
        """The largest logits behind one token per row; all stay on the GPU for :meth:`logits`."""
        assert self._top is not None, "a session that gives candidates"
        self.forget()
        self._launch(tokens_B, start_B)
        return self._top.choose(self._stream, self._logits.address, len(tokens_B), temperature)

    def logits(self, B: int) -> Logits:
        """Logits [B, V] of the last step, which had B rows; they hold until the next call."""
        assert self._ahead is None, "another step wrote its own"
        V = self._logits_BV.shape[1]
        self._logits.download(self._host_logits.address, B * V * 4, self._stream)
        self._stream.synchronize()
        if len(self._logits_BV) != B:
            self._logits_BV = np.empty((B, V), np.float32)
        # pinned memory goes when the session is closed; an array that is handed out must not
        np.copyto(self._logits_BV, self._host_logits.array(np.float32, (B, V)))
        return self._logits_BV

    def greedy(self, tokens_B: Ids, start_B: Ids, going_B: npt.NDArray[np.bool_], slots: int) -> Ids:
        """The likeliest tokens [B] behind one token per row; rows that do not go on give rubbish.

        Args:
            tokens_B: the tokens.
            start_B: their slots and positions.
            going_B: the rows that count.
            slots: that a row has; the step ahead stays inside.
        """
        assert self._argmax is not None, "a language model's session"
        ahead, self._ahead = self._ahead, None
        if ahead is not None and len(ahead.start) == len(start_B) and ahead.is_what(tokens_B, start_B, going_B):
            turn = ahead.turn
        else:
            turn = self._launch(tokens_B, start_B)
        next_B = start_B + going_B
        # the last slot's token is chosen and never fed by a generation that fills its rows
        runs_ahead = bool(going_B.any()) and int(next_B[going_B].max()) < slots - 1
        second = self._launch(None, next_B) if runs_ahead else None
        turn.done.wait()
        chosen_B: Ids = turn.chosen[: len(start_B)].copy()
        if second is not None:
            self._ahead = _Ahead(second, next_B, chosen_B)
        return chosen_B

    def close(self) -> None:
        """Frees graphs, contexts and buffers. Twice is allowed."""
        self.forget()
        for rows in self._by_rows.values():
            if rows.graph is not None:
                rows.graph.close()
            rows.context.close()
        self._by_rows.clear()
        for held in self._held:
            held.close()
        self._held.clear()

    def _launch(self, tokens_B: Ids | None, start_B: Ids) -> _Turn:
        """Gives one step to the GPU; without tokens it takes those that the step before it chose."""
        B = len(start_B)
        turn, self._next = self._turns[self._next], (self._next + 1) % _TURNS
        # its memory may still be read, where a step ahead was dropped
        turn.done.wait()
        turn.start[:B] = start_B
        self._start.upload(turn.start_at, B * _ID_BYTES, self._stream)
        if tokens_B is not None:
            turn.tokens[:B] = tokens_B
            self._tokens.upload(turn.tokens_at, B * _ID_BYTES, self._stream)
        self._graph(B, turn).launch(self._stream)
        self._tokens.download(turn.chosen_at, B * _ID_BYTES, self._stream)
        turn.done.record(self._stream)
        return turn

    def _graph(self, B: int, turn: _Turn) -> Graph:
        rows = self._by_rows.get(B)
        if rows is None:
            rows = self._by_rows[B] = _Rows(self._engine.context(self._stream, *self._memory))
        if rows.graph is None:
            rows.context.bind(self._addresses)
            shapes = {name: (B, *rest) for name, rest in self._shapes.items()}
            rows.context.shape({"input_ids": (B, 1), "query_start": (B,), **shapes})

            def work() -> None:
                rows.context.run(self._stream)
                if self._argmax is not None:
                    self._argmax.launch(self._stream, self._logits.address, self._tokens.address, B)

            # the first run after new shapes, and of a kernel, does what cannot be recorded; it needs real tokens too
            work()
            self._stream.synchronize()
            rows.graph = self._stream.capture(work)
            # the run chose tokens where its own were
            self._tokens.upload(turn.tokens_at, B * _ID_BYTES, self._stream)
        return rows.graph

    def _hold(self, buffer: DeviceBuffer) -> DeviceBuffer:
        self._held.append(buffer)
        return buffer
