"""The plugins of ``CachedAttention`` and ``PackedRotaryCachedAttention``.

Few tokens are split over the cache, and then combined; many are tiled.

Shapes: B sequences, S new tokens, T cache capacity, H query heads, G key/value heads, D head_dim, P splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemotron_plugins.launches.attention import (
    MAX_DECODE_ROWS,
    cached_attention_combine_rule,
    cached_attention_decode_rule,
    cached_attention_prefill_rule,
    decode_splits,
    rotary_cached_attention_decode_rule,
)
from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.linear import row_bucket, row_buckets
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Operand, PluginOp, Tensor
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryOp

__all__ = ["CachedAttention", "PackedRotaryCachedAttention"]

_PREFILL = "prefill"
_FLOAT_BYTES = 4
_ALIGNMENT = 256


class _SplitAttentionOp(PluginOp):
    """The kernel ``rR`` takes up to R sequences; where it splits, ``combineR`` puts together what the splits leave."""

    @staticmethod
    def _split_launches(
        request: KernelRequest, gpu: Gpu, rule: Callable[..., Launch], sizes: Mapping[str, Any]
    ) -> dict[str, Launch]:
        """Both kernels for each bucket of sequences; ``rule`` gives the first, by the heads and other sizes."""
        found = {}
        query_heads, kv_heads, head_dim = sizes["query_heads"], sizes["kv_heads"], sizes["head_dim"]
        for rows in row_buckets(request.sequences):
            splits = decode_splits(
                kv_heads=kv_heads, sequences=rows, capacity=request.capacity, multiprocessors=gpu.multiprocessors
            )
            found[f"r{rows}"] = rule(**sizes, dtype=request.dtype, splits=splits, pdl=gpu.pdl)
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

    def _decode_tokens(self, B: int) -> int:
        """New tokens per sequence, at most, that the kernel for so many sequences has place for."""
        return 1

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B sequences of as many tokens as those kernels take."""
        most_sequences, most_tokens = inputs[0].shape[:2]
        needed = 0
        for B in range(1, max(most_sequences, 1) + 1):
            vectors = B * min(most_tokens, self._decode_tokens(B)) * self.sizes["H"]
            needed = max(needed, sum(self._partial_bytes(B, vectors)))
        return needed

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


class CachedAttention(_SplitAttentionOp):
    """The kernel ``prefill`` takes any number of tokens, those of its base class as many as fit a tile."""

    name = "CachedAttention"
    inputs = (
        Operand("q", "T", "BSHD"), Operand("k_cache", "T", "BGTD"), Operand("v_cache", "T", "BGTD"),
        Operand("query_start", "I", "B"),
    )  # fmt: skip
    outputs = (Operand("out", "T", "BSHD"),)

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        sizes = cls.sizes_of(request.shapes)
        if sizes["H"] % sizes["G"]:
            cls._refuse(f"{sizes['H']} query heads", f"a multiple of the {sizes['G']} key/value heads")
        heads: dict[str, Any] = {"query_heads": sizes["H"], "kv_heads": sizes["G"], "head_dim": sizes["D"]}
        prefill = cached_attention_prefill_rule(
            **heads, dtype=request.dtype, architecture=gpu.architecture, pdl=gpu.pdl
        )
        return {**cls._split_launches(request, gpu, cached_attention_decode_rule, heads), _PREFILL: prefill}

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B, S = inputs[0].shape[:2]
        values = self._addresses(inputs, outputs) | {"tokens": S, "capacity": inputs[1].shape[2]}
        if self._decode_tokens(B) < S:
            self._launch(_PREFILL, stream, values, B=B, S=S)
        else:
            self._launch_split(B * S * self.sizes["H"], workspace, stream, values, B=B, S=S)

    def _decode_tokens(self, B: int) -> int:
        record = self.records[f"r{self._bucket(B)}"]
        group: int = self.sizes["H"] // self.sizes["G"]
        return min(MAX_DECODE_ROWS, int(record.constexprs["BLOCK_M"])) // group


class PackedRotaryCachedAttention(PackedRotaryOp, _SplitAttentionOp):
    """One token per sequence rotated, kept in both caches in place, and attending: the first output, S is 1."""

    name = "PackedRotaryCachedAttention"

    @classmethod
    def check(cls, request: KernelRequest) -> None:
        """Also refuses several tokens per sequence."""
        super().check(request)
        tokens = request.shapes[0][1]
        if tokens != 1:
            cls._refuse(f"{'any number of' if tokens is None else tokens} tokens per sequence", "1")

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        return cls._split_launches(request, gpu, rotary_cached_attention_decode_rule, cls._rotary(request))

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B = inputs[0].shape[0]
        values = self._arguments(inputs, outputs, stream)
        self._launch_split(B * self.sizes["H"], workspace, stream, values, B=B, S=1)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
