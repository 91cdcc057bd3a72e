"""The greedy choice of tokens on the GPU, by the bundle's own kernels; the lowest index wins a tie, as in numpy.

Shapes: B rows, V vocabulary, P parts of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from nemotron_errors import BundleError

from nemotron_runtime.cuda import Device, Stream

__all__ = ["Argmax"]

# one chooses within parts of the vocabulary, the other among the parts
_KEYS = ("argmax", "argmax_combine")
_BYTES = {"partial_ptr": 4, "partial_index_ptr": 8}


class Argmax:
    """Two kernels: the largest logit of each part, then of all parts.

    Args:
        library: the bundle's kernels, of the GPU's architecture.
        device: the GPU.
        where: the folder of the kernels, which errors name.

    Raises:
        BundleError: kernels that are missing, or take other arguments.
    """

    def __init__(self, library: Mapping[str, Any], device: Device, where: str) -> None:
        # needs no Triton; the plugins need it too
        from nemotron_plugins.driver.kernel import LoadedKernel

        self._device = device
        self._held = ExitStack()
        self._scratch: dict[str, int] = {}
        known = {"logits_ptr", "token_ptr", *_BYTES}
        self._kernels: list[tuple[Any, tuple[str, ...]]] = []
        for key in _KEYS:
            kernel = library.get(key)
            names = () if kernel is None else tuple(name for name, _ in kernel.record.arguments)
            if kernel is None or not set(names) <= known:
                found = f"no kernel {key}" if kernel is None else f"a kernel {key} of {', '.join(names)}"
                expected = f"one that takes {', '.join(sorted(known))}"
                raise BundleError(found, expected, "build the bundle again", where=where)
            self._kernels.append((LoadedKernel(kernel.record, kernel.cubin), names))
        self._parts = int(library[_KEYS[0]].record.constexprs["PARTS"])

    def allocate(self, max_batch: int) -> None:
        """Takes memory for the parts of so many rows."""
        for name, size in _BYTES.items():
            buffer = self._device.allocate(max_batch * self._parts * size, "the parts of an argmax")
            self._held.callback(buffer.close)
            self._scratch[name] = buffer.address

    def launch(self, stream: Stream, logits: int, tokens: int, rows: int) -> None:
        """Writes the token of each row.

        Args:
            stream: whose order it keeps.
            logits: address of float32 [B, V].
            tokens: address of int64 [B].
            rows: B.
        """
        addresses: Mapping[str, int] = {"logits_ptr": logits, "token_ptr": tokens, **self._scratch}
        for kernel, names in self._kernels:
            kernel.launch(int(stream), [addresses[name] for name in names], B=rows)

    def close(self) -> None:
        """Frees the memory. Twice is allowed."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
