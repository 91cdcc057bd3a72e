"""The plugin of ``PackedRotaryKVCacheUpdate``, and what it shares with the attention that also rotates packed heads.

Shapes: B sequences, S new tokens, H query heads, G key/value heads, D head_dim, T cache capacity, P positions in the
table, R half the rotary_dim, W = (H + 2G) × D.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_formats.dtypes import item_bytes

from nemotron_plugins.driver.kernel import copy_on_device
from nemotron_plugins.launches.launch import CompiledKernel, Gpu, Launch
from nemotron_plugins.launches.rotary import rotary_kv_cache_update_rule
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Operand, PluginOp, Tensor

__all__ = ["PackedRotaryKVCacheUpdate", "PackedRotaryOp"]

_log = logging.getLogger(__name__)
_DECODE, _MANY = "decode", "many"
# more tokens than make a small launch
_MANY_TOKENS = 1 << 20


class PackedRotaryOp(PluginOp):
    """Inputs qkv, cos and sin, position_ids, both caches, and the slots of the first new tokens; outputs of H heads,
    and the caches, which are their inputs' memory.
    """

    attributes = {"num_heads": int, "num_kv_heads": int}  # noqa: RUF012
    inputs = (
        Operand("qkv", "T", "BSW"), Operand("cos", "T", "PR"), Operand("sin", "T", "PR"),
        Operand("position", "I", "BS"), Operand("k_cache", "T", "BGTD"), Operand("v_cache", "T", "BGTD"),
        Operand("query_start", "I", "B"),
    )  # fmt: skip
    outputs = (Operand("out", "T", "BSHD"), Operand("k_cache", "T", "BGTD"), Operand("v_cache", "T", "BGTD"))
    aliases = {1: 4, 2: 5}  # noqa: RUF012

    def __init__(self, request: KernelRequest, kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(request, kernels)
        self.sizes["H"] = self.values["num_heads"]

    @classmethod
    def check(cls, request: KernelRequest) -> None:
        """Also holds the heads against each other and against the sizes."""
        super().check(request)
        values, sizes = dict(request.attributes), cls.sizes_of(request.shapes)
        H, G = int(values["num_heads"]), int(values["num_kv_heads"])
        if H < 1 or G < 1 or H % G:
            remedy = "make the node with the model's heads"
            cls._refuse(f"num_heads {H} and num_kv_heads {G}", "heads that num_kv_heads divides", remedy=remedy)
        W, D = sizes["W"], sizes["D"]
        if (sizes["G"], W) != (G, (H + 2 * G) * D):
            found, expected = f"caches of {sizes['G']} heads and qkv of width {W}", f"{G} and {(H + 2 * G) * D}"
            cls._refuse(found, f"{expected}, by num_heads {H} and num_kv_heads {G}")

    @classmethod
    def _rotary(cls, request: KernelRequest) -> dict[str, Any]:
        """What the launch rules of kernels that rotate take of a request."""
        sizes, heads = cls.sizes_of(request.shapes), dict(request.attributes)["num_heads"]
        return {"query_heads": heads, "kv_heads": sizes["G"], "head_dim": sizes["D"], "rotary_dim": 2 * sizes["R"]}

    def _arguments(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], stream: int) -> dict[str, int]:
        """The arguments that every such kernel takes; a cache whose output lies elsewhere is copied there first."""
        for output, index in self.aliases.items():
            source, target = inputs[index], outputs[output]
            if source.address != target.address:
                # a session binds both to one memory; a builder that times the node may not
                _log.warning("%s: a cache is copied, as TensorRT gave other memory for the output", self.name)
                size = math.prod(source.shape) * item_bytes(self.dtype)
                copy_on_device(stream, target.address, source.address, size)
        # the kernels write the caches, which are therefore the outputs
        return self._addresses(inputs, outputs) | {"capacity": inputs[4].shape[2], "positions": inputs[1].shape[0]}


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
