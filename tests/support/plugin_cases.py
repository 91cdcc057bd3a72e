"""Calls of the TensorRT plugins: dtypes and shapes of inputs and outputs, and where they lie.

B 3 rows, T 512 slots, P 300 positions; S tokens.
"""

from __future__ import annotations

from typing import Any

from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.tensorrt import PLUGIN_OPS, use_library
from nemotron_plugins.tensorrt.fields import attribute_fields
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor
from nemotron_plugins.tensorrt.plugin import make_op

from support.plugin_libraries import library_of

__all__ = [
    "ATTENTION",
    "BF",
    "CASES",
    "HEADS",
    "I64",
    "OPS",
    "ROTARY",
    "UP",
    "Call",
    "attention_call",
    "make_plugin_op",
    "normed_call",
    "placed",
    "residual_call",
    "rotary_call",
]

Call = list[tuple[str, tuple[int, ...]]]
OPS = {op.name: op for op in PLUGIN_OPS}
ROTARY, ATTENTION = "PackedRotaryKVCacheUpdate", "CachedAttention"
HEADS = {"num_heads": 6, "num_kv_heads": 2}
UP = {"epsilon": 1e-5, "activation": "relu_squared", "kernel": "up"}
HEAD = {"epsilon": 1e-5, "output": "float32", "kernel": "head"}
BF, I64 = "bfloat16", "int64"


def rotary_call(S: int = 1, B: int = 3) -> Call:
    cache = (BF, (B, 2, 512, 16))
    return [(BF, (B, S, 160)), (BF, (300, 4)), (BF, (300, 4)), (I64, (B, S)), cache, cache, (I64, (B,))]


def attention_call(S: int = 1, B: int = 3) -> Call:
    cache = (BF, (B, 2, 512, 16))
    return [(BF, (B, S, 6, 16)), cache, cache, (I64, (B,))]


def normed_call(outputs: int, B: int = 3) -> Call:
    return [(BF, (B, 1, 64)), (BF, (64,)), (BF, (64,)), (BF, (outputs, 64))]


def residual_call(B: int = 3) -> Call:
    return [(BF, (B, 1, 96)), (BF, (64, 96)), (BF, (B, 1, 64))]


CASES: dict[str, tuple[str, dict[str, Any], Call, Call]] = {
    "rotary": (
        ROTARY, HEADS, rotary_call(),
        [(BF, (3, 1, 6, 16)), (BF, (3, 2, 512, 16)), (BF, (3, 2, 512, 16))],
    ),
    "rotary and attention": (
        "PackedRotaryCachedAttention", HEADS, rotary_call(),
        [(BF, (3, 1, 6, 16)), (BF, (3, 2, 512, 16)), (BF, (3, 2, 512, 16))],
    ),
    "attention": (ATTENTION, {}, attention_call(), [(BF, (3, 1, 6, 16))]),
    "up": ("LayerNormLinear", UP, normed_call(96), [(BF, (3, 1, 96))]),
    "head": ("LayerNormLinear", HEAD, normed_call(40), [("float32", (3, 1, 40))]),
    "down": ("LinearResidual", {"kernel": "down"}, residual_call(), [(BF, (3, 1, 64))]),
}  # fmt: skip


def make_plugin_op(name: str, attributes: dict[str, Any], library: KernelLibrary | None = None) -> PluginOp:
    """An op of a node of these attributes."""
    with use_library(library or library_of()):
        return make_op(OPS[name], attribute_fields(attributes))


def placed(tensors: Call, first: int) -> list[Tensor]:
    return [Tensor(dtype, shape, (first + i) << 12) for i, (dtype, shape) in enumerate(tensors)]
