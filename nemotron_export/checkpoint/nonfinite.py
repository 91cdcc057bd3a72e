"""NaN and Inf in raw little-endian bytes, by bit tests in small blocks."""

from __future__ import annotations

import numpy as np
from nemotron_formats.dtypes import SAFETENSORS_BITS

__all__ = ["LARGEST_ITEM", "NonFiniteCounter"]

# A value is NaN or Inf where all exponent bits are one (IEEE 754; bfloat16 has float32's exponent).
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
# bytes of the largest value that is tested
LARGEST_ITEM = 4
# Blocks that stay in the second-level cache.
_BLOCK_BYTES = 256 << 10


class NonFiniteCounter:
    """Counts non-finite values with one scratch block of 256 KiB; use one per thread."""

    def __init__(self) -> None:
        self._scratch = np.empty(_BLOCK_BYTES, np.uint8)

    def count(self, data: memoryview, dtype: str) -> tuple[int, int]:
        """Number of non-finite values in `data` and the index of the first, -1 where there is none.

        Args:
            data: whole little-endian elements, at any alignment.
            dtype: "BF16", "F16" or "F32".
        """
        kind = np.dtype("<u2" if SAFETENSORS_BITS[dtype] == 16 else "<u4")
        exponent = kind.type(_EXPONENT[dtype])
        values = np.frombuffer(data, kind)
        scratch = self._scratch.view(kind)
        total, first = 0, -1
        for start in range(0, len(values), len(scratch)):
            block = values[start : start + len(scratch)]
            masked = np.bitwise_and(block, exponent, out=scratch[: len(block)])
            # The maximum is a fast reduction; counting is left to blocks that have something to count.
            if masked.max() == exponent:
                bad = masked == exponent
                if first < 0:
                    first = start + int(bad.argmax())
                total += int(np.count_nonzero(bad))
        return total, first
