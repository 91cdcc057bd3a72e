"""The plugin of ``CachedAttention``: few tokens split over the cache, many tiled.

Shapes: B rows, N cache rows, S new tokens, T cache slots, H query heads, G key/value heads, D head_dim, P splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_errors import GraphError

from nemotron_plugins.launches.attention import MAX_DECODE_ROWS
from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.tensorrt.fields import Attribute
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.split_attention import PARTIALS, SplitAttentionOp

__all__ = ["CachedAttention"]

_PREFILL = "cached_attention_prefill"
_INPUTS = ("q_ptr", "k_cache_ptr", "v_cache_ptr", "query_start_ptr", "cache_row_ptr", "out_ptr", "tokens", "slots")


class CachedAttention(SplitAttentionOp):
    """Inputs q [B, S, H, D], caches [N, G, T, D], query_start [B] and optionally cache_row [B]; output [B, S, H, D]."""

    name = "CachedAttention"
    decode = "cached_attention_decode"
    inputs = "TTTII"
    outputs = "T"
    arguments = {  # noqa: RUF012
        "cached_attention_decode_kernel": (*_INPUTS, *PARTIALS),
        "cached_attention_combine_kernel": (*PARTIALS, "out_ptr"),
        "cached_attention_prefill_kernel": _INPUTS,
    }

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        first = self.records[_PREFILL].constexprs
        self._kv_heads, self._group, self._head_dim = (int(first[c]) for c in ("KV_HEADS", "GROUP", "HEAD_DIM"))
        for rows in self._buckets:
            for constant in ("KV_HEADS", "GROUP", "HEAD_DIM", "HAS_CACHE_ROW"):
                self._check_constant(f"{self.decode}.r{rows}", constant, first[constant], f"as {_PREFILL} has it")
        self._check_combines()

    @classmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """The prefill kernel and, for each bucket of rows, decode and what combines its splits."""
        if _PREFILL not in held:
            raise GraphError("no such kernel", "one for prefill", "build the kernels", where=f"{cls.name}.{_PREFILL}")
        return [_PREFILL, *cls._split_keys(held)]

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[B, S, H, D]."""
        return [[*inputs[0]]]

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Heads and head_dim are the kernels'; cache_row is there where they read it."""
        self._check_constant(_PREFILL, "HAS_CACHE_ROW", len(inputs) == len(self.inputs), "by the node's inputs")
        self._check_size("heads of q", inputs[0].shape[2], self._kv_heads * self._group)
        self._check_size("head_dim of q", inputs[0].shape[3], self._head_dim)
        for name, cache in (("k_cache", inputs[1]), ("v_cache", inputs[2])):
            self._check_size(f"heads of {name}", cache.shape[1], self._kv_heads)
            self._check_size(f"head_dim of {name}", cache.shape[3], self._head_dim)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B rows of as many tokens as the decode kernel takes."""
        most_rows, most_tokens = inputs[0].shape[:2]
        needed = 0
        for B in range(1, max(most_rows, 1) + 1):
            vectors = self._vectors(B, min(most_tokens, self._decode_tokens(B)))
            needed = max(needed, sum(self._partial_bytes(B, vectors)))
        return needed

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        q, k_cache, v_cache, query_start, *cache_row = inputs
        B, S = q.shape[:2]
        values = {
            "q_ptr": q.address,
            "k_cache_ptr": k_cache.address,
            "v_cache_ptr": v_cache.address,
            "query_start_ptr": query_start.address,
            # not read where there is none
            "cache_row_ptr": (cache_row or [query_start])[0].address,
            "out_ptr": outputs[0].address,
            "tokens": S,
            "slots": k_cache.shape[2],
        }
        if self._decode_tokens(B) < S:
            self._launch(_PREFILL, stream, values, B=B, S=S)
        else:
            self._launch_split(self._vectors(B, S), workspace, stream, values, B=B, S=S)

    def _vectors(self, B: int, S: int) -> int:
        return B * S * self._kv_heads * self._group

    def _decode_tokens(self, rows: int) -> int:
        """New tokens per row, at most, that the decode kernel for so many rows has place for."""
        record = self.records[f"{self.decode}.r{self._bucket(rows)}"]
        return min(MAX_DECODE_ROWS, int(record.constexprs["BLOCK_M"])) // self._group
