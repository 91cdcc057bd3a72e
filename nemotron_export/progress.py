"""How long steps tell what they do."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

# (stage, done, total); a total of 0 means that it is not known
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""
