"""Top-k candidates on the GPU: a tournament of the bundle's own kernels finds the largest logits of each sequence.

Shapes: B sequences, V vocabulary, P parts of the vocabulary, C candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError

from nemotron_runtime.cuda import Device, Graph, Stream
from nemotron_runtime.executors.tensorrt.kernels import find_kernel
from nemotron_runtime.sampling.candidates import Candidates, log_of_sums

__all__ = ["Tournament", "unpack"]

_log = logging.getLogger(__name__)
_FIRST, _MERGE = "candidates", "candidates_merge"
_ARGUMENTS = {
    _FIRST: ("logits_ptr", "temperature_ptr", "key_ptr", "mass_ptr"),
    _MERGE: ("key_ptr", "largest_key_ptr", "keys"),
}
_SIZES = ("VOCAB", "LOG_BLOCK", "LOG_COUNT")
# a key, and a part's largest score with its sum
_ITEM_BYTES = 8
_LOW = 0xFFFFFFFF


class Tournament:
    """Two kernels: the largest logits of each part of the vocabulary, then of many parts together until one is left.

    Its launches are recorded as one CUDA graph per number of sequences; the temperature is read from the GPU's memory,
    so a graph stays right when it changes.

    Args:
        library: the bundle's kernels, both among them.
        vocab_size: V.
        device: the GPU.
        where: the folder of the kernels, which errors name.

    Attributes:
        count: C, at most V.

    Raises:
        BundleError: kernels that take other arguments, or are not for this vocabulary, or not for each other.
    """

    def __init__(self, library: Mapping[str, Any], vocab_size: int, device: Device, where: str) -> None:
        # needs no Triton
        from nemotron_plugins.launches.candidates import tournament

        found = [find_kernel(library, key, arguments, where) for key, arguments in _ARGUMENTS.items()]
        (self._first, self._merge), (first, merge) = zip(*((k, record.constexprs) for k, record in found), strict=True)
        own, other = (tuple(map(constants.get, _SIZES)) for constants in (first, {**merge, "VOCAB": vocab_size}))
        if own != other or None in own:
            stored, wanted = f"a kernel {_FIRST} of {_sizes(own)}", f"one of {_sizes(other)}"
            raise BundleError(stored, wanted, "build the bundle again", where=where)
        log_block, log_count = (int(first[name]) for name in _SIZES[1:])
        self._vocab_size, self._keys = vocab_size, 1 << log_count
        self.count = min(self._keys, vocab_size)
        self._parts = tournament(vocab_size, log_block, log_count)
        self._device = device
        self._held = ExitStack()
        self._graphs: dict[tuple[int, int], Graph] = {}

    @classmethod
    def open(cls, library: Mapping[str, Any], vocab_size: int, device: Device, where: str) -> Self | None:
        """Out of a bundle's kernels; None, and a warning, where it was built before there were such kernels.

        Raises:
            BundleError: one kernel without the other, or see the class.
        """
        missing = [key for key in _ARGUMENTS if key not in library]
        if len(missing) == len(_ARGUMENTS):
            _log.warning(
                "%s: no kernels that find the top-k candidates: sampling copies all logits of each step; build the "
                "bundle again for faster sampling", where,
            )  # fmt: skip
            return None
        if missing:
            raise BundleError(
                f"no kernel {missing[0]}", " and ".join(_ARGUMENTS), "build the bundle again", where=where
            )
        return cls(library, vocab_size, device, where)

    def allocate(self, max_batch: int) -> None:
        """Takes memory for so many sequences."""

        def take(size: int) -> Any:
            return self._held.enter_context(self._device.allocate(max_batch * size, "the candidates of a step"))

        # of a launch that is not the last; the next one writes the other
        self._between = [take(parts * self._keys * _ITEM_BYTES) for parts in self._parts[:-1][:2]]
        self._items = self._keys + self._parts[0]
        self._result = take(self._items * _ITEM_BYTES)
        self._temperature = take(_ITEM_BYTES)
        self._host = self._held.enter_context(self._device.pinned((max_batch * self._items + 1) * _ITEM_BYTES))

    def choose(self, stream: Stream, logits: int, sequences: int, temperature: float) -> Candidates:
        """The largest of each sequence, on the host.

        Args:
            stream: whose order it keeps; all its work is done at the end.
            logits: address of float32 [B, V].
            sequences: B.
            temperature: of ``log_sum``.
        """
        self._host.array(np.float32, (1,))[0] = temperature
        self._temperature.upload(self._host.address, 4, stream)
        self._graph(stream, logits, sequences).launch(stream)
        items = sequences * self._items
        self._result.download(self._host.address + _ITEM_BYTES, items * _ITEM_BYTES, stream)
        stream.synchronize()
        found = self._host.array(np.int64, (items,), _ITEM_BYTES)
        keys_BC = found[: sequences * self._keys].reshape(sequences, self._keys)
        masses_BP2 = found[sequences * self._keys :].view(np.float32).reshape(sequences, self._parts[0], 2)
        return unpack(keys_BC, masses_BP2, self._vocab_size)

    def close(self) -> None:
        """Frees graphs and memory. Twice is allowed."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._held.close()

    def _graph(self, stream: Stream, logits: int, sequences: int) -> Graph:
        graph = self._graphs.get((logits, sequences))
        if graph is None:
            # the first run of a kernel does what cannot be recorded
            self._launch(stream, logits, sequences)
            stream.synchronize()
            graph = self._graphs[logits, sequences] = stream.capture(lambda: self._launch(stream, logits, sequences))
        return graph

    def _launch(self, stream: Stream, logits: int, sequences: int) -> None:
        result = self._result.address
        # the sums lie after the keys
        masses = result + sequences * self._keys * _ITEM_BYTES
        last = len(self._parts) - 1
        keys = [result if n == last else self._between[n % 2].address for n in range(last + 1)]
        self._first.launch(int(stream), [logits, self._temperature.address, keys[0], masses], B=sequences)
        for n in range(1, last + 1):
            arguments = [keys[n - 1], keys[n], self._parts[n - 1] * self._keys]
            self._merge.launch(int(stream), arguments, B=sequences, P=self._parts[n])


def unpack(keys_BC: npt.NDArray[np.int64], masses_BP2: npt.NDArray[np.float32], vocab_size: int) -> Candidates:
    """What the kernels wrote, as tokens, logits and the log of their sum.

    Args:
        keys_BC: descending; those past V are none.
        masses_BP2: each part's largest score and the sum of exp(score - largest).
        vocab_size: V.
    """
    keys_BC = keys_BC[:, : min(keys_BC.shape[1], vocab_size)]
    order_BC = (keys_BC >> 32).astype(np.int32)
    logits_BC = np.where(order_BC < 0, order_BC ^ np.int32(0x7FFFFFFF), order_BC).view(np.float32)
    log_sum_B = log_of_sums(masses_BP2[..., 0], masses_BP2[..., 1])
    return Candidates(_LOW - (keys_BC & _LOW), logits_BC, log_sum_B)


def _sizes(values: tuple[Any, ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(_SIZES, values, strict=True))
