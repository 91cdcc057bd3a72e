"""Chooses tokens on the GPU among the logits of a decode step, by the bundle's own kernels.

Shapes: B sequences, V values of an output, P parts of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from nemotron_runtime.closing import Closing
from nemotron_runtime.cuda import Device, Stream
from nemotron_runtime.executors.batch import Ids, Logits
from nemotron_runtime.executors.tensorrt.kernels import find_kernel
from nemotron_runtime.executors.tensorrt.staging import StepStaging
from nemotron_runtime.executors.tensorrt.tournament import Tournament
from nemotron_runtime.sampling.candidates import Candidates
from nemotron_runtime.sampling.device import DeviceSampler

__all__ = ["TensorRTSampler"]

# the largest logit of each part of the vocabulary, then the largest of all parts; the lowest index wins a tie
_ARGMAX = {
    "argmax": ("logits_ptr", "partial_ptr", "partial_index_ptr"),
    "argmax_combine": ("partial_ptr", "partial_index_ptr", "token_ptr"),
}
_PART_BYTES = {"partial_ptr": 4, "partial_index_ptr": 8}


class TensorRTSampler(DeviceSampler, Closing):
    """Holds the logits of the decode engine's steps, and chooses among those of the last one.

    The greedy choice is part of a step's CUDA graph (:meth:`launch`), so that the next step can take its tokens from
    the device. The kernels are loaded first and the memory is taken later (:meth:`allocate`).

    Args:
        device: the GPU.
        output_size: V.
        library: the bundle's kernels; None for a task that chooses no tokens.
        where: the folder of the kernels, which errors name.

    Attributes:
        candidate_count: top-k candidates that it gives; 0 where the bundle has no kernels for them.

    Raises:
        BundleError: kernels that are missing, take other arguments or do not fit together.
    """

    def __init__(self, device: Device, output_size: int, library: Mapping[str, Any] | None, where: str) -> None:
        self._device, self._output_size = device, output_size
        self._held = ExitStack()
        self._kernels: list[tuple[Any, tuple[str, ...]]] = []
        self._tournament: Tournament | None = None
        self.candidate_count = 0
        self._addresses: dict[str, int] = {}
        # of the last step
        self._staging: StepStaging | None = None
        self._chosen_B: Ids | None = None
        self._logits_BV = np.zeros((0, output_size), np.float32)
        if library is None:
            return
        for key, arguments in _ARGMAX.items():
            kernel, record = find_kernel(library, key, arguments, where)
            self._kernels.append((kernel, arguments))
            if "PARTS" in record.constexprs:
                self._parts = int(record.constexprs["PARTS"])
        self._tournament = Tournament.open(library, output_size, device, where)
        if self._tournament is not None:
            self._held.callback(self._tournament.close)
            self.candidate_count = self._tournament.count

    @property
    def chooses(self) -> bool:
        """Whether it can make a greedy choice."""
        return bool(self._kernels)

    @property
    def logits_address(self) -> int:
        """Where a step writes its logits, float32 [B, V]."""
        return self._addresses["logits_ptr"]

    def allocate(self, stream: Stream, max_batch: int) -> None:
        """Takes memory for steps of so many sequences, all work of which is in one stream."""
        hold, size = self._held.enter_context, max_batch * self._output_size * 4
        self._stream = stream
        self._logits = hold(self._device.allocate(size, "the logits of a step"))
        self._host_logits = hold(self._device.pinned(size))
        self._addresses["logits_ptr"] = self._logits.address
        if self._kernels:
            for name, item_bytes in _PART_BYTES.items():
                buffer = hold(self._device.allocate(max_batch * self._parts * item_bytes, "the parts of an argmax"))
                self._addresses[name] = buffer.address
        if self._tournament is not None:
            self._tournament.allocate(max_batch)

    def launch(self, tokens: int, sequences: int) -> None:
        """Writes the likeliest tokens, int64 [B], to the address ``tokens``; nothing where there are no kernels."""
        addresses: Mapping[str, int] = {**self._addresses, "token_ptr": tokens}
        for kernel, names in self._kernels:
            kernel.launch(int(self._stream), [addresses[name] for name in names], B=sequences)

    def show(self, staging: StepStaging, sequences: int, *, has_logits: bool = True) -> None:
        """Tells of the step to choose from; ``has_logits`` is False where a later one overwrites its logits."""
        self._staging, self._sequences, self._has_logits = staging, sequences, has_logits
        self._chosen_B = None

    def greedy(self) -> Ids:
        """See :meth:`DeviceSampler.greedy`."""
        if self._chosen_B is None:
            assert self.chooses, "a language model's executor"
            assert self._staging is not None, "a step comes first"
            self._staging.done.wait()
            self._chosen_B = self._staging.chosen[: self._sequences].copy()
        return self._chosen_B

    def candidates(self, temperature: float) -> Candidates:
        """See :meth:`DeviceSampler.candidates`."""
        assert self._tournament is not None, "an executor that has candidates"
        assert self._has_logits, "a later step wrote its own"
        return self._tournament.choose(self._stream, self._logits.address, self._sequences, temperature)

    def logits(self) -> Logits:
        """See :meth:`DeviceSampler.logits`."""
        assert self._has_logits, "a later step wrote its own"
        shape_BV = (self._sequences, self._output_size)
        self._logits.download(self._host_logits.address, self._sequences * self._output_size * 4, self._stream)
        self._stream.synchronize()
        if self._logits_BV.shape != shape_BV:
            self._logits_BV = np.empty(shape_BV, np.float32)
        # pinned memory goes when the executor is closed; an array that is handed out must not
        np.copyto(self._logits_BV, self._host_logits.array(np.float32, shape_BV))
        return self._logits_BV

    def close(self) -> None:
        """Frees graphs and memory. Twice is allowed."""
        self._held.close()
