"""The plugin of ``PackedRotaryCachedAttention``: one token rotated, kept in both caches in place, and attending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.tensorrt.fields import Attribute
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryOp
from nemotron_plugins.tensorrt.split_attention import PARTIALS, SplitAttentionOp

__all__ = ["PackedRotaryCachedAttention"]


class PackedRotaryCachedAttention(PackedRotaryOp, SplitAttentionOp):
    """The first output is the attention's; S is 1. See :class:`PackedRotaryOp`.

    Raises:
        GraphError: also where a row has several tokens.
    """

    name = "PackedRotaryCachedAttention"
    decode = "rotary_cached_attention_decode"
    arguments = {  # noqa: RUF012
        "rotary_cached_attention_decode_kernel": (
            "qkv_ptr", "cos_ptr", "sin_ptr", "position_ptr", "query_start_ptr", "cache_row_ptr", "k_cache_ptr",
            "v_cache_ptr", "out_ptr", *PARTIALS, "cache_rows", "slots", "positions",
        ),
        "cached_attention_combine_kernel": (*PARTIALS, "out_ptr"),
    }  # fmt: skip

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        group = self._heads // self._kv_heads
        for rows in self._buckets:
            key = f"{self.decode}.r{rows}"
            self._check_constant(key, "KV_HEADS", self._kv_heads, "the node's num_kv_heads")
            self._check_constant(key, "GROUP", group, "as many of the node's num_heads as share a key")
        self._check_combines()

    @classmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """For each bucket of rows the kernel, and what combines its splits."""
        return cls._split_keys(held)

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """One token; otherwise see :meth:`PackedRotaryOp._check_key`."""
        self._check_size("tokens per row", inputs[0].shape[1], 1)
        for rows in self._buckets:
            self._check_key(f"{self.decode}.r{rows}", inputs)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B rows."""
        most = range(1, max(inputs[0].shape[0], 1) + 1)
        return max(sum(self._partial_bytes(B, B * self._heads)) for B in most)

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        B = inputs[0].shape[0]
        values = self._arguments(inputs, outputs, stream) | {
            "qkv_ptr": inputs[0].address,
            "query_start_ptr": inputs[6].address,
            "out_ptr": outputs[0].address,
        }
        self._launch_split(B * self._heads, workspace, stream, values, B=B, S=1)
