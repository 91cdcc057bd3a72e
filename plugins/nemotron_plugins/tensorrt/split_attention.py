"""What the plugins have in common whose attention is split over the cache and then combined, for few tokens per row.

Shapes: B rows, S new tokens, H query heads, D head_dim, P splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.tensorrt.fields import Attribute
from nemotron_plugins.tensorrt.operator import PluginOp, row_buckets_of, smallest_bucket

__all__ = ["PARTIALS", "SplitAttentionOp"]

# the kernels' arguments: partial results and their log-sums
PARTIALS = ("partial_ptr", "partial_lse_ptr")
_COMBINE = "cached_attention_combine"
_FLOAT_BYTES = 4
_ALIGNMENT = 256


class SplitAttentionOp(PluginOp):
    """Has for each bucket of rows a kernel ``decode`` and, where it splits, one that combines what the splits leave.

    Raises:
        GraphError: also where there is no bucket.
    """

    # the kernels' name in the library, without the bucket
    decode: ClassVar[str]

    @classmethod
    def _split_keys(cls, held: Sequence[str]) -> list[str]:
        """The keys of both kinds, of those that a library holds."""
        buckets = row_buckets_of(cls.name, cls.decode, held)
        combines = [f"{_COMBINE}.r{rows}" for rows in buckets]
        return [*(f"{cls.decode}.r{rows}" for rows in buckets), *(key for key in combines if key in held)]

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        self._buckets = row_buckets_of(self.name, self.decode, list(kernels))

    def _check_combines(self) -> None:
        """Holds each kernel against the one behind it."""
        for rows in self._buckets:
            key, combine = f"{self.decode}.r{rows}", f"{_COMBINE}.r{rows}"
            constexprs = self.records[key].constexprs
            if int(constexprs["SPLITS"]) > 1:
                if combine not in self.kernels:
                    self._refuse("no such kernel", f"one behind {key}", combine)
                for constant in ("SPLITS", "HEAD_DIM"):
                    self._check_constant(combine, constant, constexprs[constant], f"as {key} has it")

    def _bucket(self, B: int) -> int:
        """Of the kernels that so many rows take."""
        return smallest_bucket(B, self._buckets)

    def _partial_bytes(self, B: int, vectors: int) -> tuple[int, int]:
        """Of the partial results [vectors, P, D] and of their log-sums [vectors, P], rounded up to the alignment.

        ``vectors`` is B × S × H.
        """
        constexprs = self.records[f"{self.decode}.r{self._bucket(B)}"].constexprs
        splits = int(constexprs["SPLITS"])
        if splits == 1:
            return 0, 0
        sums = vectors * splits * _FLOAT_BYTES
        return _aligned(sums * int(constexprs["HEAD_DIM"])), _aligned(sums)

    def _launch_split(
        self, vectors: int, workspace: int, stream: int, values: Mapping[str, int], *, B: int, S: int
    ) -> None:
        """Launches the kernel for so many rows, and what combines its splits."""
        bucket, (partial_bytes, _) = self._bucket(B), self._partial_bytes(B, vectors)
        values = {**values, "partial_ptr": workspace, "partial_lse_ptr": workspace + partial_bytes}
        self._launch(f"{self.decode}.r{bucket}", stream, values, B=B, S=S)
        if partial_bytes:
            self._launch(f"{_COMBINE}.r{bucket}", stream, values, B=B, S=S)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
