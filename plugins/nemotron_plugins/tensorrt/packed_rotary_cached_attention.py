"""The plugin of ``PackedRotaryCachedAttention``: rotation, update of both caches in place and attention, of one token.

Shapes: B rows, N cache rows, H query heads, G key/value heads, D head_dim, T cache slots, P positions in the table or
splits, R rotary_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_plugins.launch import CompiledKernel
from nemotron_plugins.tensorrt.caches import copy_caches
from nemotron_plugins.tensorrt.fields import Attribute, FieldSpec
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor, row_buckets_of, smallest_bucket
from nemotron_plugins.tensorrt.splits import PARTIALS, partial_bytes

__all__ = ["PackedRotaryCachedAttention"]

_DECODE, _COMBINE = "rotary_cached_attention_decode", "cached_attention_combine"


class PackedRotaryCachedAttention(PluginOp):
    """Inputs qkv [B, 1, (H+2G)D], cos and sin [P, R/2], position_ids [B, 1], caches [N, G, T, D], query_start [B] and
    optionally cache_row [B]; outputs attention [B, 1, H, D] and the caches, which are their inputs' memory.

    Raises:
        GraphError: also where the key/value heads do not divide the query heads, or a row has several tokens.
    """

    name = "PackedRotaryCachedAttention"
    attributes = (FieldSpec("num_heads", int), FieldSpec("num_kv_heads", int))
    inputs = "TTTITTII"
    outputs = "TTT"
    aliases = {1: 4, 2: 5}  # noqa: RUF012
    arguments = {  # noqa: RUF012
        "rotary_cached_attention_decode_kernel": (
            "qkv_ptr", "cos_ptr", "sin_ptr", "position_ptr", "query_start_ptr", "cache_row_ptr", "k_cache_ptr",
            "v_cache_ptr", "out_ptr", *PARTIALS, "cache_rows", "slots", "positions",
        ),
        "cached_attention_combine_kernel": (*PARTIALS, "out_ptr"),
    }  # fmt: skip

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        H, G = int(values["num_heads"]), int(values["num_kv_heads"])
        if H < 1 or G < 1 or H % G:
            remedy = "make the node with the model's heads"
            self._refuse(f"num_heads {H} and num_kv_heads {G}", "heads that num_kv_heads divides", remedy=remedy)
        self._heads, self._kv_heads = H, G
        self._buckets = row_buckets_of(self.name, _DECODE, list(kernels))
        for rows in self._buckets:
            key, combine = f"{_DECODE}.r{rows}", f"{_COMBINE}.r{rows}"
            self._check_constant(key, "KV_HEADS", G, "the node's num_kv_heads")
            self._check_constant(key, "GROUP", H // G, "as many of the node's num_heads as share a key")
            if self._constant(rows, "SPLITS") > 1:
                if combine not in kernels:
                    self._refuse("no such kernel", f"one behind {key}", combine)
                for constant in ("SPLITS", "HEAD_DIM"):
                    self._check_constant(combine, constant, self._constant(rows, constant), f"as {key} has it")

    @classmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """For each bucket of rows the kernel, and what combines its splits."""
        buckets = row_buckets_of(cls.name, _DECODE, held)
        combines = [f"{_COMBINE}.r{rows}" for rows in buckets]
        return [*(f"{_DECODE}.r{rows}" for rows in buckets), *(key for key in combines if key in held)]

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[B, 1, H, D] and the caches'."""
        qkv, k_cache, v_cache = inputs[0], inputs[4], inputs[5]
        return [[qkv[0], qkv[1], self._heads, k_cache[3]], [*k_cache], [*v_cache]]

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """One token; heads, head_dim and rotary width are the kernels'; cache_row is there where they read it."""
        self._check_size("tokens per row", inputs[0].shape[1], 1)
        for rows in self._buckets:
            D = self._constant(rows, "HEAD_DIM")
            has_row = len(inputs) == len(self.inputs)
            self._check_constant(f"{_DECODE}.r{rows}", "HAS_CACHE_ROW", has_row, "by the node's inputs")
            self._check_size("qkv's width", inputs[0].shape[2], (self._heads + 2 * self._kv_heads) * D)
            for name, table in (("cos", inputs[1]), ("sin", inputs[2])):
                half = self._constant(rows, "HALF")
                self._check_size(f"width of {name}, half the rotary width,", table.shape[1], half)
            for name, cache in (("k_cache", inputs[4]), ("v_cache", inputs[5])):
                self._check_size(f"heads of {name}", cache.shape[1], self._kv_heads)
                self._check_size(f"head_dim of {name}", cache.shape[3], D)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B rows."""
        return max(sum(self._partial_bytes(rows)) for rows in range(1, max(inputs[0].shape[0], 1) + 1))

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        qkv, cos, sin, position_ids, k_cache, v_cache, query_start, *cache_row = inputs
        out, k_out, v_out = outputs
        copy_caches(self.name, self.dtype, [(k_cache, k_out), (v_cache, v_out)], stream)
        B = qkv.shape[0]
        bucket = smallest_bucket(B, self._buckets)
        values = {
            "qkv_ptr": qkv.address,
            "cos_ptr": cos.address,
            "sin_ptr": sin.address,
            "position_ptr": position_ids.address,
            "query_start_ptr": query_start.address,
            # not read where there is none
            "cache_row_ptr": (cache_row or [query_start])[0].address,
            "k_cache_ptr": k_out.address,
            "v_cache_ptr": v_out.address,
            "out_ptr": out.address,
            "partial_ptr": workspace,
            "partial_lse_ptr": workspace + self._partial_bytes(B)[0],
            "cache_rows": k_cache.shape[0],
            "slots": k_cache.shape[2],
            "positions": cos.shape[0],
        }
        self._launch(f"{_DECODE}.r{bucket}", stream, values, B=B, S=1)
        if self._constant(bucket, "SPLITS") > 1:
            self._launch(f"{_COMBINE}.r{bucket}", stream, values, B=B, S=1)

    def _constant(self, bucket: int, name: str) -> int:
        return int(self.records[f"{_DECODE}.r{bucket}"].constexprs[name])

    def _partial_bytes(self, B: int) -> tuple[int, int]:
        bucket = smallest_bucket(B, self._buckets)
        return partial_bytes(B * self._heads, self._constant(bucket, "HEAD_DIM"), self._constant(bucket, "SPLITS"))
