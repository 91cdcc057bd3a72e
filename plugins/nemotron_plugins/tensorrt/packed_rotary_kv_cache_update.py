"""The plugin of ``PackedRotaryKVCacheUpdate``: rotation, and the update of both caches in place."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.rotary import rotary_kv_cache_update_rule
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryOp

__all__ = ["PackedRotaryKVCacheUpdate"]

_DECODE, _MANY = "decode", "many"
# more tokens than make a small launch
_MANY_TOKENS = 1 << 20


class PackedRotaryKVCacheUpdate(PackedRotaryOp):
    """The first output is the rotated q. ``decode`` takes one token per sequence, ``many`` several."""

    name = "PackedRotaryKVCacheUpdate"

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        tokens, rotary = request.shapes[0][1], cls._rotary(request)
        found = {}
        if tokens in (None, 1):
            found[_DECODE] = rotary_kv_cache_update_rule(**rotary, max_tokens=request.sequences, pdl=gpu.pdl)
        if tokens != 1:
            found[_MANY] = rotary_kv_cache_update_rule(**rotary, max_tokens=_MANY_TOKENS, pdl=gpu.pdl)
        return found

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B, S = inputs[0].shape[:2]
        values = self._arguments(inputs, outputs, stream)
        values |= {f"{part}_ptr": values["qkv_ptr"] for part in "qkv"}
        values |= {"write_index_ptr": values["query_start_ptr"], "q_out_ptr": values["out_ptr"], "tokens": S}
        self._launch(_DECODE if S == 1 else _MANY, stream, values, B=B, S=S)
