"""The plugin of ``CachedAttention``: few tokens split over the cache, many tiled.

Shapes: B sequences, S new tokens, T cache capacity, H query heads, G key/value heads, D head_dim, P splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from nemotron_plugins.launches.attention import (
    MAX_DECODE_ROWS,
    cached_attention_decode_rule,
    cached_attention_prefill_rule,
)
from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Operand, Tensor
from nemotron_plugins.tensorrt.split_attention import SplitAttentionOp

__all__ = ["CachedAttention"]

_PREFILL = "prefill"


class CachedAttention(SplitAttentionOp):
    """The kernel ``prefill`` takes any number of tokens, those of :class:`SplitAttentionOp` as many as fit a tile."""

    name = "CachedAttention"
    inputs = (
        Operand("q", "T", "BSHD"), Operand("k_cache", "T", "BGTD"), Operand("v_cache", "T", "BGTD"),
        Operand("query_start", "I", "B"),
    )  # fmt: skip
    outputs = (Operand("out", "T", "BSHD"),)

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        sizes = cls.sizes_of(request.shapes)
        heads: dict[str, Any] = {"query_heads": sizes["H"], "kv_heads": sizes["G"], "head_dim": sizes["D"]}
        if sizes["H"] % sizes["G"]:
            cls._refuse(f"{sizes['H']} query heads", f"a multiple of the {sizes['G']} key/value heads")
        common: dict[str, Any] = {**heads, "dtype": request.dtype, "pdl": gpu.pdl}
        decode = partial(cached_attention_decode_rule, **common)
        found = cls._split_launches(request, gpu, lambda splits: decode(splits=splits), **heads)
        return found | {_PREFILL: cached_attention_prefill_rule(**common, architecture=gpu.architecture)}

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B sequences of as many tokens as the decode kernel takes."""
        most_sequences, most_tokens = inputs[0].shape[:2]
        needed = 0
        for B in range(1, max(most_sequences, 1) + 1):
            vectors = B * min(most_tokens, self._decode_tokens(B)) * self.sizes["H"]
            needed = max(needed, sum(self._partial_bytes(B, vectors)))
        return needed

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B, S = inputs[0].shape[:2]
        values = self._addresses(inputs, outputs) | {"tokens": S, "capacity": inputs[1].shape[2]}
        if self._decode_tokens(B) < S:
            self._launch(_PREFILL, stream, values, B=B, S=S)
        else:
            self._launch_split(B * S * self.sizes["H"], workspace, stream, values, B=B, S=S)

    def _decode_tokens(self, B: int) -> int:
        """New tokens per sequence, at most, that the decode kernel for so many sequences has place for."""
        record = self.records[f"r{self._bucket(B)}"]
        group: int = self.sizes["H"] // self.sizes["G"]
        return min(MAX_DECODE_ROWS, int(record.constexprs["BLOCK_M"])) // group
