"""Decode steps on the GPU: one CUDA graph per number of sequences, tokens chosen there, one step ahead of the host.

Shapes: B sequences, V values of an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemotron_runtime.cuda import Device, DeviceBuffer, Graph, Stream
from nemotron_runtime.executors.batch import Ids
from nemotron_runtime.executors.tensorrt.context import BuiltEngine, Context
from nemotron_runtime.executors.tensorrt.sampler import TensorRTSampler
from nemotron_runtime.executors.tensorrt.staging import ID_BYTES, StepStaging

__all__ = ["Decoder"]

# a step in flight, and the one that runs ahead of it
_STAGINGS = 2


@dataclass
class _Steps:
    """What steps of one number of sequences need; the context is its graph's own, as TensorRT wants it."""

    context: Context
    graph: Graph | None = None


@dataclass
class _Ahead:
    """A step that runs before it was asked for: on the tokens that the device itself chose."""

    staging: StepStaging
    start: Ids  # [B]
    tokens: Ids  # [B]

    def is_what(self, tokens_B: Ids, start_B: Ids, advancing_B: npt.NDArray[np.bool_]) -> bool:
        """Whether it computes the step asked for, in the sequences that go on."""
        if len(self.start) != len(start_B):
            return False
        same_B = (self.tokens == tokens_B) & (self.start == start_B)
        return bool(same_B[advancing_B].all())


class Decoder:
    """Runs the decode engine.

    A step's inputs lie at fixed device addresses. The sampler writes the tokens that it chooses where the next step
    reads its input, so the step after a greedy one is given to the GPU before its tokens are on the host. Where the
    next call asks for just that step, it is running already; where not (a sequence ended, another request), its result
    is dropped: all it wrote is one entry after each sequence's end, which is written again before it is read.

    Args:
        device: the GPU.
        stream: of all work of the executor.
        engine: the decode engine.
        addresses: of its weights.
        memory: address and bytes of the activations.
        sampler: where the logits are.
        max_batch: sequences at most.
        output: name of the engine's output.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        engine: BuiltEngine,
        addresses: Mapping[str, int],
        memory: tuple[int, int],
        sampler: TensorRTSampler,
        max_batch: int,
        output: str,
    ) -> None:
        self._stream, self._engine, self._memory, self._sampler = stream, engine, memory, sampler
        self._addresses = dict(addresses)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._by_sequences: dict[int, _Steps] = {}
        self._ahead: _Ahead | None = None
        self._next = 0
        self._held: list[DeviceBuffer | StepStaging] = []
        try:
            self._tokens = self._hold(device.allocate(max_batch * ID_BYTES, "the tokens of a step"))
            self._start = self._hold(device.allocate(max_batch * ID_BYTES, "the positions of a step"))
            self._stagings = [StepStaging(device, max_batch) for _ in range(_STAGINGS)]
            self._held += self._stagings
        except BaseException:
            self.close()
            raise
        self._addresses |= {
            "input_ids": self._tokens.address, "query_start": self._start.address, output: sampler.logits_address
        }  # fmt: skip

    def bind(self, addresses: Mapping[str, int], shape_BGTD: tuple[int, ...]) -> None:
        """Takes caches by name; the graphs of other addresses or capacities are dropped.

        Args:
            addresses: of the caches, inputs and outputs.
            shape_BGTD: of each; its B does not matter.
        """
        self._stream.synchronize()
        self.forget()
        for steps in self._by_sequences.values():
            if steps.graph is not None:
                steps.graph.close()
                steps.graph = None
        self._addresses |= addresses
        # an updated cache is its input's memory, and has no shape to be told
        self._shapes = {name: shape_BGTD[1:] for name in addresses if name in self._engine.inputs}

    def forget(self) -> None:
        """Drops the step that runs ahead: something else comes between."""
        self._ahead = None

    def step(self, tokens_B: Ids, start_B: Ids) -> TensorRTSampler:
        """Feeds one token to every sequence, at the positions ``start_B``; gives what chooses among the logits."""
        self.forget()
        self._sampler.show(self._launch(tokens_B, start_B), len(start_B))
        return self._sampler

    def greedy_step(
        self, tokens_B: Ids, start_B: Ids, advancing_B: npt.NDArray[np.bool_], capacity: int
    ) -> TensorRTSampler:
        """:meth:`step` whose greedy choice alone is wanted, so that the next one may start already.

        Args:
            tokens_B: the tokens.
            start_B: their positions.
            advancing_B: the sequences that count.
            capacity: tokens that a sequence can have; the step ahead stays inside.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.is_what(tokens_B, start_B, advancing_B):
            staging = ahead.staging
        else:
            staging = self._launch(tokens_B, start_B)
        next_B = start_B + advancing_B
        # the last token that a sequence has room for is chosen and never fed by a generation that fills it
        runs_ahead = bool(advancing_B.any()) and int(next_B[advancing_B].max()) < capacity - 1
        second = self._launch(None, next_B) if runs_ahead else None
        self._sampler.show(staging, len(start_B), has_logits=second is None)
        if second is not None:
            self._ahead = _Ahead(second, next_B, self._sampler.greedy())
        return self._sampler

    def close(self) -> None:
        """Frees graphs, contexts and buffers. Twice is allowed."""
        self.forget()
        for steps in self._by_sequences.values():
            if steps.graph is not None:
                steps.graph.close()
            steps.context.close()
        self._by_sequences.clear()
        for held in self._held:
            held.close()
        self._held.clear()

    def _launch(self, tokens_B: Ids | None, start_B: Ids) -> StepStaging:
        """Gives one step to the GPU; without tokens it takes those that the step before it chose."""
        B = len(start_B)
        staging, self._next = self._stagings[self._next], (self._next + 1) % _STAGINGS
        # its memory may still be read, where a step ahead was dropped
        staging.done.wait()
        staging.start[:B] = start_B
        self._start.upload(staging.start_at, B * ID_BYTES, self._stream)
        if tokens_B is not None:
            staging.tokens[:B] = tokens_B
            self._tokens.upload(staging.tokens_at, B * ID_BYTES, self._stream)
        self._graph(B, staging).launch(self._stream)
        self._tokens.download(staging.chosen_at, B * ID_BYTES, self._stream)
        staging.done.record(self._stream)
        return staging

    def _graph(self, B: int, staging: StepStaging) -> Graph:
        steps = self._by_sequences.get(B)
        if steps is None:
            steps = self._by_sequences[B] = _Steps(self._engine.context(self._stream, *self._memory))
        if steps.graph is None:
            steps.context.bind(self._addresses)
            shapes = {name: (B, *rest) for name, rest in self._shapes.items()}
            steps.context.shape({"input_ids": (B, 1), "query_start": (B,), **shapes})

            def work() -> None:
                steps.context.run(self._stream)
                self._sampler.launch(self._tokens.address, B)

            # the first run after new shapes, and of a kernel, does what cannot be recorded; it needs real tokens too
            work()
            self._stream.synchronize()
            steps.graph = self._stream.capture(work)
            # the run chose tokens where its own were
            self._tokens.upload(staging.tokens_at, B * ID_BYTES, self._stream)
        return steps.graph

    def _hold(self, buffer: DeviceBuffer) -> DeviceBuffer:
        self._held.append(buffer)
        return buffer
