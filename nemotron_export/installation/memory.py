"""Memory that is free on this machine."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["available_memory", "gigabytes"]


def available_memory() -> int:
    """Bytes that this process may still take: the system's free memory, or less in a container."""
    available = psutil.virtual_memory().available
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit = Path(limit_file).read_text().strip()
            used = int(Path(used_file).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            # page cache counts as used but is given back
            return max(0, min(available, int(limit) - used + _page_cache(Path(limit_file).parent)))
    return available


def _page_cache(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = {key: value for key, _, value in (line.partition(" ") for line in lines)}
    return sum(int(stat.get(key, 0)) for key in ("inactive_file", "active_file"))


def gigabytes(count: int) -> str:
    """Bytes as messages name them: 15.63 GB."""
    return f"{count / 1e9:.2f} GB"
