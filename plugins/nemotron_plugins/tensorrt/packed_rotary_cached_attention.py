"""The plugin of ``PackedRotaryCachedAttention``: one token rotated, kept in both caches in place, and attending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemotron_plugins.launch import CompiledKernel
from nemotron_plugins.tensorrt.fields import Attribute
from nemotron_plugins.tensorrt.operator import Tensor, row_buckets_of, smallest_bucket
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryOp
from nemotron_plugins.tensorrt.splits import PARTIALS, partial_bytes

__all__ = ["PackedRotaryCachedAttention"]

_DECODE, _COMBINE = "rotary_cached_attention_decode", "cached_attention_combine"


class PackedRotaryCachedAttention(PackedRotaryOp):
    """The first output is the attention's; S is 1. See :class:`PackedRotaryOp`.

    Raises:
        GraphError: also where a row has several tokens.
    """

    name = "PackedRotaryCachedAttention"
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
        self._buckets = row_buckets_of(self.name, _DECODE, list(kernels))
        for rows in self._buckets:
            key, combine = f"{_DECODE}.r{rows}", f"{_COMBINE}.r{rows}"
            self._check_constant(key, "KV_HEADS", self._kv_heads, "the node's num_kv_heads")
            self._check_constant(key, "GROUP", group, "as many of the node's num_heads as share a key")
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

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """One token; otherwise see :meth:`PackedRotaryOp._check_key`."""
        self._check_size("tokens per row", inputs[0].shape[1], 1)
        for rows in self._buckets:
            self._check_key(f"{_DECODE}.r{rows}", inputs)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B rows."""
        return max(sum(self._partial_bytes(rows)) for rows in range(1, max(inputs[0].shape[0], 1) + 1))

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        B = inputs[0].shape[0]
        bucket = smallest_bucket(B, self._buckets)
        values = self._arguments(inputs, outputs, stream) | {
            "qkv_ptr": inputs[0].address,
            "query_start_ptr": inputs[6].address,
            "out_ptr": outputs[0].address,
            "partial_ptr": workspace,
            "partial_lse_ptr": workspace + self._partial_bytes(B)[0],
        }
        self._launch(f"{_DECODE}.r{bucket}", stream, values, B=B, S=1)
        if self._constant(bucket, "SPLITS") > 1:
            self._launch(f"{_COMBINE}.r{bucket}", stream, values, B=B, S=1)

    def _constant(self, bucket: int, name: str) -> int:
        return int(self.records[f"{_DECODE}.r{bucket}"].constexprs[name])

    def _partial_bytes(self, B: int) -> tuple[int, int]:
        bucket = smallest_bucket(B, self._buckets)
        return partial_bytes(B * self._heads, self._constant(bucket, "HEAD_DIM"), self._constant(bucket, "SPLITS"))
