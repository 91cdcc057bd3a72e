"""The plugin of ``PackedRotaryCachedAttention``: one token rotated, kept in both caches in place, and attending."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nemotron_plugins.launches.attention import rotary_cached_attention_decode_rule
from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryOp
from nemotron_plugins.tensorrt.split_attention import SplitAttentionOp

__all__ = ["PackedRotaryCachedAttention"]


class PackedRotaryCachedAttention(PackedRotaryOp, SplitAttentionOp):
    """The first output is the attention's; S is 1. See :class:`PackedRotaryOp` and :class:`SplitAttentionOp`."""

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
        rotary = cls._rotary(request)
        heads = {name: rotary[name] for name in ("query_heads", "kv_heads", "head_dim")}
        decode = partial(rotary_cached_attention_decode_rule, **rotary, dtype=request.dtype, pdl=gpu.pdl)
        return cls._split_launches(request, gpu, lambda splits: decode(splits=splits), **heads)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The splits' partial results, for up to B sequences."""
        most = range(1, max(inputs[0].shape[0], 1) + 1)
        return max(sum(self._partial_bytes(B, B * self.sizes["H"])) for B in most)

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B = inputs[0].shape[0]
        values = self._arguments(inputs, outputs, stream)
        self._launch_split(B * self.sizes["H"], workspace, stream, values, B=B, S=1)
