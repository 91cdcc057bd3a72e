"""The largest logits of each row, found on the GPU by the bundle's own kernels: what sampling needs of a step.

Shapes: B rows, V vocabulary, P parts of the vocabulary, C candidates.
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
from nemotron_runtime.sampling.candidates import Candidates, log_of_sums

__all__ = ["TopLogits", "unpack"]

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


class TopLogits:
    """A tournament of two kernels: the largest logits of each part, then of many parts together until one is left.

    Its launches are recorded as one CUDA graph per number of rows; the temperature is read from the GPU's memory, so a
    graph stays right when it changes.

    Args:
        kernels: by key, both.
        vocab_size: V.
        device: the GPU.
        where: the folder of the kernels, which errors name.

    Attributes:
        count: C, at most V.

    Raises:
        BundleError: kernels that take other arguments, or are not for this vocabulary, or not for each other.
    """

    def __init__(self, kernels: dict[str, Any], vocab_size: int, device: Device, where: str) -> None:
        # needs no Triton
        from nemotron_plugins.driver.kernel import LoadedKernel
        from nemotron_plugins.launches.candidates import tournament

        for key, expected in _ARGUMENTS.items():
            names = tuple(name for name, _ in kernels[key].record.arguments)
            if names != expected:
                found, wanted = f"a kernel {key} of {', '.join(names)}", f"one that takes {', '.join(expected)}"
                raise BundleError(found, wanted, "build the bundle again", where=where)
        first, merge = (kernels[key].record.constexprs for key in _ARGUMENTS)
        own, other = (tuple(map(constants.get, _SIZES)) for constants in (first, {**merge, "VOCAB": vocab_size}))
        if own != other or None in own:
            found, wanted = f"a kernel {_FIRST} of {_sizes(own)}", f"one of {_sizes(other)}"
            raise BundleError(found, wanted, "build the bundle again", where=where)
        log_block, log_count = (int(first[name]) for name in _SIZES[1:])
        self._first, self._merge = (LoadedKernel(kernels[key].record, kernels[key].cubin) for key in _ARGUMENTS)
        self._vocab_size, self._slots = vocab_size, 1 << log_count
        self.count = min(self._slots, vocab_size)
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
                "%s: no kernels that find the likeliest tokens: sampling copies all logits of each step; build the "
                "bundle again for faster sampling", where,
            )  # fmt: skip
            return None
        if missing:
            raise BundleError(
                f"no kernel {missing[0]}", " and ".join(_ARGUMENTS), "build the bundle again", where=where
            )
        return cls({key: library[key] for key in _ARGUMENTS}, vocab_size, device, where)

    def allocate(self, max_batch: int) -> None:
        """Takes memory for so many rows."""

        def take(size: int) -> Any:
            return self._held.enter_context(self._device.allocate(max_batch * size, "the candidates of a step"))

        # of a launch that is not the last; the one behind it writes the other
        self._between = [take(parts * self._slots * _ITEM_BYTES) for parts in self._parts[:-1][:2]]
        self._row_items = self._slots + self._parts[0]
        self._result = take(self._row_items * _ITEM_BYTES)
        self._temperature = take(_ITEM_BYTES)
        self._host = self._held.enter_context(self._device.pinned((max_batch * self._row_items + 1) * _ITEM_BYTES))

    def choose(self, stream: Stream, logits: int, rows: int, temperature: float) -> Candidates:
        """The largest of each row, on the host.

        Args:
            stream: whose order it keeps; all its work is done at the end.
            logits: address of float32 [B, V].
            rows: B.
            temperature: of ``log_sum``.
        """
        self._host.array(np.float32, (1,))[0] = temperature
        self._temperature.upload(self._host.address, 4, stream)
        self._graph(stream, logits, rows).launch(stream)
        items = rows * self._row_items
        self._result.download(self._host.address + _ITEM_BYTES, items * _ITEM_BYTES, stream)
        stream.synchronize()
        found = self._host.array(np.int64, (items,), _ITEM_BYTES)
        keys_BC = found[: rows * self._slots].reshape(rows, self._slots)
        masses_BP2 = found[rows * self._slots :].view(np.float32).reshape(rows, self._parts[0], 2)
        return unpack(keys_BC, masses_BP2, self._vocab_size)

    def close(self) -> None:
        """Frees graphs and memory. Twice is allowed."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._held.close()

    def _graph(self, stream: Stream, logits: int, rows: int) -> Graph:
        graph = self._graphs.get((logits, rows))
        if graph is None:
            # the first run of a kernel does what cannot be recorded
            self._launch(stream, logits, rows)
            stream.synchronize()
            graph = self._graphs[logits, rows] = stream.capture(lambda: self._launch(stream, logits, rows))
        return graph

    def _launch(self, stream: Stream, logits: int, rows: int) -> None:
        result = self._result.address
        # the sums lie behind the keys of so many rows
        masses = result + rows * self._slots * _ITEM_BYTES
        last = len(self._parts) - 1
        keys = [result if turn == last else self._between[turn % 2].address for turn in range(last + 1)]
        self._first.launch(int(stream), [logits, self._temperature.address, keys[0], masses], B=rows)
        for turn in range(1, last + 1):
            arguments = [keys[turn - 1], keys[turn], self._parts[turn - 1] * self._slots]
            self._merge.launch(int(stream), arguments, B=rows, P=self._parts[turn])


def unpack(keys_BC: npt.NDArray[np.int64], masses_BP2: npt.NDArray[np.float32], vocab_size: int) -> Candidates:
    """What the kernels wrote, as tokens, logits and the log of their sum.

    Args:
        keys_BC: descending; those behind V are none.
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
