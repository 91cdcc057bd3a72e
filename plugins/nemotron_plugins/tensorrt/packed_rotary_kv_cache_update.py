"""The plugin of ``PackedRotaryKVCacheUpdate``: rotation, and the update of both caches in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemotron_errors import GraphError

from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.tensorrt.fields import Attribute
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.packed_rotary import PackedRotaryOp

__all__ = ["PackedRotaryKVCacheUpdate"]

_DECODE, _MANY = "packed_rotary_kv_cache_update", "packed_rotary_kv_cache_update_prefill"


class PackedRotaryKVCacheUpdate(PackedRotaryOp):
    """The first output is the rotated q; see :class:`PackedRotaryOp`."""

    name = "PackedRotaryKVCacheUpdate"
    arguments = {  # noqa: RUF012
        "rotary_kv_cache_update_kernel": (
            "q_ptr", "k_ptr", "v_ptr", "cos_ptr", "sin_ptr", "position_ptr", "write_index_ptr", "cache_row_ptr",
            "q_out_ptr", "k_cache_ptr", "v_cache_ptr", "tokens", "cache_rows", "slots", "positions",
        )
    }  # fmt: skip

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        H, G = self._heads, self._kv_heads
        for key in kernels:
            D = int(self.records[key].constexprs["HEAD_DIM"])
            self._check_constant(key, "QUERY_HEADS", H, "the node's num_heads")
            self._check_constant(key, "KV_HEADS", G, "the node's num_kv_heads")
            self._check_constant(key, "K_OFFSET", H * D, "where k lies in a packed tensor")
            self._check_constant(key, "V_OFFSET", (H + G) * D, "where v lies in a packed tensor")

    @classmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """One kernel for decoding and one for many tokens."""
        for key in (_DECODE, _MANY):
            if key not in held:
                raise GraphError("no such kernel", "one for each phase", "build the kernels", where=f"{cls.name}.{key}")
        return [_DECODE, _MANY]

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """See :meth:`PackedRotaryOp._check_key`."""
        for key in self.records:
            self._check_key(key, inputs)

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        qkv, write_index = inputs[0], inputs[6]
        B, S = qkv.shape[:2]
        values = self._arguments(inputs, outputs, stream) | {
            "q_ptr": qkv.address,
            "k_ptr": qkv.address,
            "v_ptr": qkv.address,
            "write_index_ptr": write_index.address,
            "q_out_ptr": outputs[0].address,
            "tokens": S,
        }
        self._launch(_DECODE if S == 1 else _MANY, stream, values, B=B, S=S)
