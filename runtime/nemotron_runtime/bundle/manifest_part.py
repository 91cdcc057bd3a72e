"""A piece of a weights file, as manifests name it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WeightPart"]


@dataclass(frozen=True)
class WeightPart:
    """A piece of a weights file: ``length`` bytes from ``offset`` on."""

    file: str
    offset: int
    length: int
