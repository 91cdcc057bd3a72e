"""What the plugins have in common that rotate packed heads and update both caches in place.

Shapes: B rows, N cache rows, S new tokens, H query heads, G key/value heads, D head_dim, T cache slots, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_plugins.driver.kernel import copy_on_device
from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.launches.rotary import ITEM_BYTES
from nemotron_plugins.tensorrt.fields import Attribute, FieldSpec
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor

__all__ = ["PackedRotaryOp"]

_log = logging.getLogger(__name__)


class PackedRotaryOp(PluginOp):
    """Inputs qkv [B, S, (H+2G)D], cos and sin [P, R/2], position_ids [B, S], caches [N, G, T, D],
    slots of the first new tokens [B] and optionally cache_row [B]; outputs [B, S, H, D] and the caches, which are their
    inputs' memory.

    Raises:
        GraphError: also where the key/value heads do not divide the query heads.
    """

    attributes = (FieldSpec("num_heads", int), FieldSpec("num_kv_heads", int))
    inputs = "TTTITTII"
    outputs = "TTT"
    aliases = {1: 4, 2: 5}  # noqa: RUF012

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        H, G = int(values["num_heads"]), int(values["num_kv_heads"])
        if H < 1 or G < 1 or H % G:
            remedy = "make the node with the model's heads"
            self._refuse(f"num_heads {H} and num_kv_heads {G}", "heads that num_kv_heads divides", remedy=remedy)
        self._heads, self._kv_heads = H, G

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[B, S, H, D] and the caches'."""
        qkv, k_cache, v_cache = inputs[0], inputs[4], inputs[5]
        return [[qkv[0], qkv[1], self._heads, k_cache[3]], [*k_cache], [*v_cache]]

    def _check_key(self, key: str, inputs: Sequence[Tensor]) -> None:
        """Heads, head_dim and rotary width are those of a kernel that rotates; cache_row is there where it reads it."""
        constexprs = self.records[key].constexprs
        D, half = int(constexprs["HEAD_DIM"]), int(constexprs["HALF"])
        self._check_constant(key, "HAS_CACHE_ROW", len(inputs) == len(self.inputs), "by the node's inputs")
        self._check_size("qkv's width", inputs[0].shape[2], (self._heads + 2 * self._kv_heads) * D)
        for name, table in (("cos", inputs[1]), ("sin", inputs[2])):
            self._check_size(f"width of {name}, half the rotary width,", table.shape[1], half)
        for name, cache in (("k_cache", inputs[4]), ("v_cache", inputs[5])):
            self._check_size(f"heads of {name}", cache.shape[1], self._kv_heads)
            self._check_size(f"head_dim of {name}", cache.shape[3], D)

    def _arguments(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], stream: int) -> dict[str, int]:
        """The arguments that every such kernel takes; a cache whose output lies elsewhere is copied there first."""
        _, cos, sin, position_ids, k_cache, v_cache, start, *cache_row = inputs
        for source, target in ((k_cache, outputs[1]), (v_cache, outputs[2])):
            if source.address != target.address:
                # a session binds both to one memory; a builder that times the node may not
                _log.warning("%s: a cache is copied, as TensorRT gave other memory for the output", self.name)
                size = math.prod(source.shape) * ITEM_BYTES[self.dtype]
                copy_on_device(stream, target.address, source.address, size)
        return {
            "cos_ptr": cos.address,
            "sin_ptr": sin.address,
            "position_ptr": position_ids.address,
            # not read where there is none
            "cache_row_ptr": (cache_row or [start])[0].address,
            "k_cache_ptr": outputs[1].address,
            "v_cache_ptr": outputs[2].address,
            "cache_rows": k_cache.shape[0],
            "slots": k_cache.shape[2],
            "positions": cos.shape[0],
        }
