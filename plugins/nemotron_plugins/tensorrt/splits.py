"""Scratch memory of attention that is split over the cache: what its plugins share."""

from __future__ import annotations

__all__ = ["PARTIALS", "partial_bytes"]

# the kernels' arguments: partial results and their log-sums
PARTIALS = ("partial_ptr", "partial_lse_ptr")
_FLOAT_BYTES = 4
_ALIGNMENT = 256


def partial_bytes(vectors: int, head_dim: int, splits: int) -> tuple[int, int]:
    """Of the partial results [vectors, splits, head_dim] and of their log-sums, rounded up to the alignment."""
    if splits == 1:
        return 0, 0
    sums = vectors * splits * _FLOAT_BYTES
    return _aligned(sums * head_dim), _aligned(sums)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
