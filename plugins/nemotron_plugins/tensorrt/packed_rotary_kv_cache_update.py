"""The plugin of ``PackedRotaryKVCacheUpdate``: rotation, and the update of both caches in place.

Shapes: B rows, N cache rows, S new tokens, H query heads, G key/value heads, D head_dim, T cache slots, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_errors import GraphError

from nemotron_plugins.launch import CompiledKernel
from nemotron_plugins.tensorrt.caches import copy_caches
from nemotron_plugins.tensorrt.fields import Attribute, FieldSpec
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor

__all__ = ["PackedRotaryKVCacheUpdate"]

_DECODE, _MANY = "packed_rotary_kv_cache_update", "packed_rotary_kv_cache_update_prefill"


class PackedRotaryKVCacheUpdate(PluginOp):
    """Inputs qkv [B, S, (H+2G)D], cos and sin [P, R/2], position_ids [B, S], caches [N, G, T, D], write_index [B] and
    optionally cache_row [B]; outputs rotated q [B, S, H, D] and the caches, which are their inputs' memory.

    Raises:
        GraphError: also where the key/value heads do not divide the query heads.
    """

    name = "PackedRotaryKVCacheUpdate"
    attributes = (FieldSpec("num_heads", int), FieldSpec("num_kv_heads", int))
    inputs = "TTTITTII"
    outputs = "TTT"
    aliases = {1: 4, 2: 5}  # noqa: RUF012
    arguments = {  # noqa: RUF012
        "rotary_kv_cache_update_kernel": (
            "q_ptr", "k_ptr", "v_ptr", "cos_ptr", "sin_ptr", "position_ptr", "write_index_ptr", "cache_row_ptr",
            "q_out_ptr", "k_cache_ptr", "v_cache_ptr", "tokens", "cache_rows", "slots", "positions",
        )
    }  # fmt: skip

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        H, G = int(values["num_heads"]), int(values["num_kv_heads"])
        if H < 1 or G < 1 or H % G:
            remedy = "make the node with the model's heads"
            self._refuse(f"num_heads {H} and num_kv_heads {G}", "heads that num_kv_heads divides", remedy=remedy)
        self._heads, self._kv_heads = H, G
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

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[B, S, H, D] and the caches'."""
        qkv, k_cache, v_cache = inputs[0], inputs[4], inputs[5]
        return [[qkv[0], qkv[1], self._heads, k_cache[3]], [*k_cache], [*v_cache]]

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Heads, head_dim and rotary width are the kernels'; cache_row is there where they read it."""
        for key, record in self.records.items():
            D, half = int(record.constexprs["HEAD_DIM"]), int(record.constexprs["HALF"])
            self._check_constant(key, "HAS_CACHE_ROW", len(inputs) == len(self.inputs), "by the node's inputs")
            self._check_size("qkv's width", inputs[0].shape[2], (self._heads + 2 * self._kv_heads) * D)
            for name, table in (("cos", inputs[1]), ("sin", inputs[2])):
                self._check_size(f"width of {name}, half the rotary width,", table.shape[1], half)
            for name, cache in (("k_cache", inputs[4]), ("v_cache", inputs[5])):
                self._check_size(f"heads of {name}", cache.shape[1], self._kv_heads)
                self._check_size(f"head_dim of {name}", cache.shape[3], D)

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        qkv, cos, sin, position_ids, k_cache, v_cache, write_index, *cache_row = inputs
        q_out, k_out, v_out = outputs
        B, S = qkv.shape[:2]
        N, T = k_cache.shape[0], k_cache.shape[2]
        copy_caches(self.name, self.dtype, [(k_cache, k_out), (v_cache, v_out)], stream)
        values = {
            "q_ptr": qkv.address,
            "k_ptr": qkv.address,
            "v_ptr": qkv.address,
            "cos_ptr": cos.address,
            "sin_ptr": sin.address,
            "position_ptr": position_ids.address,
            "write_index_ptr": write_index.address,
            # not read where there is none
            "cache_row_ptr": (cache_row or [write_index])[0].address,
            "q_out_ptr": q_out.address,
            "k_cache_ptr": k_out.address,
            "v_cache_ptr": v_out.address,
            "tokens": S,
            "cache_rows": N,
            "slots": T,
            "positions": cos.shape[0],
        }
        self._launch(_DECODE if S == 1 else _MANY, stream, values, B=B, S=S)
