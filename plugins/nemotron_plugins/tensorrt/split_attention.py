"""What the plugins have in common whose attention is split over the cache and then combined, for few tokens each.

Shapes: B sequences, S new tokens, H query heads, D head_dim, P splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nemotron_plugins.launches.attention import cached_attention_combine_rule, decode_splits
from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.linear import row_bucket, row_buckets
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import PluginOp

__all__ = ["SplitAttentionOp"]

_FLOAT_BYTES = 4
_ALIGNMENT = 256


class SplitAttentionOp(PluginOp):
    """The kernel ``rR`` takes up to R sequences; where it splits, ``combineR`` puts together what the splits leave."""

    @staticmethod
    def _split_launches(
        request: KernelRequest, gpu: Gpu, rule: Callable[[int], Launch], *, query_heads: int, kv_heads: int,
        head_dim: int,
    ) -> dict[str, Launch]:  # fmt: skip
        """Both kernels for each bucket of sequences; ``rule`` gives the first for a number of splits."""
        found = {}
        for rows in row_buckets(request.sequences):
            splits = decode_splits(
                kv_heads=kv_heads, sequences=rows, capacity=request.capacity, multiprocessors=gpu.multiprocessors
            )
            found[f"r{rows}"] = rule(splits)
            if splits > 1:
                found[f"combine{rows}"] = cached_attention_combine_rule(
                    query_heads=query_heads, head_dim=head_dim, splits=splits, pdl=gpu.pdl
                )
        return found

    def _check_kernels(self) -> None:
        super()._check_kernels()
        records = self.records
        for rows in row_buckets(self.request.sequences):
            decode, combine = f"r{rows}", f"combine{rows}"
            wanted = records[decode].constexprs
            if int(wanted["SPLITS"]) == 1:
                continue
            if combine not in records:
                self._refuse("no such kernel", f"one after {decode}", combine)
            for constant in ("SPLITS", "HEAD_DIM"):
                found, expected = records[combine].constexprs[constant], wanted[constant]
                if found != expected:
                    self._refuse(f"{constant} = {found}", f"{expected}, as {decode} has it", combine)

    def _bucket(self, B: int) -> int:
        """Of the kernels that so many sequences take."""
        return min(row_bucket(B), row_buckets(self.request.sequences)[-1])

    def _partial_bytes(self, B: int, vectors: int) -> tuple[int, int]:
        """Of the partial results [vectors, P, D] and of their log-sums [vectors, P], rounded up to the alignment.

        ``vectors`` is B × S × H.
        """
        constexprs = self.records[f"r{self._bucket(B)}"].constexprs
        splits = int(constexprs["SPLITS"])
        if splits == 1:
            return 0, 0
        sums = vectors * splits * _FLOAT_BYTES
        return _aligned(sums * int(constexprs["HEAD_DIM"])), _aligned(sums)

    def _launch_split(
        self, vectors: int, workspace: int, stream: int, values: Mapping[str, int], *, B: int, S: int
    ) -> None:
        """Launches the kernel for so many sequences, and what combines its splits."""
        bucket, (partial_bytes, _) = self._bucket(B), self._partial_bytes(B, vectors)
        values = {**values, "partial_ptr": workspace, "partial_lse_ptr": workspace + partial_bytes}
        self._launch(f"r{bucket}", stream, values, B=B, S=S)
        if partial_bytes:
            self._launch(f"combine{bucket}", stream, values, B=B, S=S)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
