"""How fast this machine reads memory: threads take the maximum of a buffer that no cache holds.

`numpy.max` over bytes is a vectorised read that keeps up with one core's bandwidth and releases the GIL. The buffer is
four times the last-level cache, at least 256 MiB, and was written before, so that every page of it is there.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

__all__ = ["METHOD", "ReadBandwidth", "last_level_cache"]

METHOD = "maximum of all bytes of a buffer, by threads; the fastest of three passes per round"

_SMALLEST = 256 << 20
_CACHES = Path("/sys/devices/system/cpu")
_PASSES = 3


class ReadBandwidth:
    """The probe: call it for bytes per second, the fastest of three passes.

    Args:
        buffer_bytes: size of the buffer; four last-level caches, at least 256 MiB, where None.
    """

    def __init__(self, threads: int, buffer_bytes: int | None = None) -> None:
        self.buffer_bytes = buffer_bytes or max(_SMALLEST, 4 * (last_level_cache() or 0))
        self._pool = ThreadPoolExecutor(threads, "read")
        self._parts = np.array_split(np.empty(self.buffer_bytes, np.uint8), threads)
        list(self._pool.map(lambda part: part.fill(1), self._parts))

    def __call__(self) -> float:
        fastest = float("inf")
        for _ in range(_PASSES):
            began = time.perf_counter()
            found = max(self._pool.map(np.max, self._parts))
            fastest = min(fastest, time.perf_counter() - began)
            assert found == 1
        return self.buffer_bytes / fastest

    def close(self) -> None:
        """Frees the buffer and ends the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._parts = []


def last_level_cache(root: Path = _CACHES) -> int | None:
    """Bytes of all last-level caches together, as Linux tells; None where it does not."""
    caches: dict[tuple[int, str], int] = {}
    try:
        for cache in root.glob("cpu[0-9]*/cache/index[0-9]*"):
            if (cache / "type").read_text().strip() == "Instruction":
                continue
            size = (cache / "size").read_text().strip()
            key = int((cache / "level").read_text()), (cache / "shared_cpu_list").read_text().strip()
            caches[key] = int(size.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
    except (OSError, ValueError):
        return None
    top = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == top) or None
