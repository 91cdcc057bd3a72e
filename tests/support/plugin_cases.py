"""Calls of the TensorRT plugins: dtypes and shapes of inputs and outputs, and where they lie.

B 3 sequences, T capacity 512, P 512 positions; S tokens.
"""

from __future__ import annotations

from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.tensorrt import PLUGIN_OPS, use_library
from nemotron_plugins.tensorrt.fields import request_field
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor
from nemotron_plugins.tensorrt.plugin import make_op

from support.kernel_requests import ModelSizes
from support.plugin_libraries import SIZES, library_of

__all__ = [
    "BF",
    "CASES",
    "I64",
    "Call",
    "attention_call",
    "make_plugin_op",
    "normed_call",
    "placed",
    "residual_call",
    "rotary_call",
]

Call = list[tuple[str, tuple[int, ...]]]
BF, I64 = "bfloat16", "int64"


def rotary_call(S: int = 1, B: int = 3) -> Call:
    cache = (BF, (B, 2, 512, 16))
    return [(BF, (B, S, 160)), (BF, (512, 4)), (BF, (512, 4)), (I64, (B, S)), cache, cache, (I64, (B,))]


def attention_call(S: int = 1, B: int = 3) -> Call:
    cache = (BF, (B, 2, 512, 16))
    return [(BF, (B, S, 6, 16)), cache, cache, (I64, (B,))]


def normed_call(outputs: int, B: int = 3) -> Call:
    return [(BF, (B, 1, 64)), (BF, (64,)), (BF, (64,)), (BF, (outputs, 64))]


def residual_call(B: int = 3) -> Call:
    return [(BF, (B, 1, 96)), (BF, (64, 96)), (BF, (B, 1, 64))]


# name of a request of a model → inputs and outputs
CASES: dict[str, tuple[Call, Call]] = {
    "update": (rotary_call(), [(BF, (3, 1, 6, 16)), (BF, (3, 2, 512, 16)), (BF, (3, 2, 512, 16))]),
    "fused": (rotary_call(), [(BF, (3, 1, 6, 16)), (BF, (3, 2, 512, 16)), (BF, (3, 2, 512, 16))]),
    "attention": (attention_call(), [(BF, (3, 1, 6, 16))]),
    "up": (normed_call(96), [(BF, (3, 1, 96))]),
    "head": (normed_call(40), [("float32", (3, 1, 40))]),
    "down": (residual_call(), [(BF, (3, 1, 64))]),
}


def make_plugin_op(name: str, library: KernelLibrary | None = None, sizes: ModelSizes = SIZES) -> PluginOp:
    """The op of a node that asks for a model's request of that name."""
    request = sizes.requests[name]
    with use_library(library_of(sizes.requests.values()) if library is None else library):
        return make_op(PLUGIN_OPS[request.op], [request_field(request.to_json())])


def placed(tensors: Call, first: int) -> list[Tensor]:
    return [Tensor(dtype, shape, (first + i) << 12) for i, (dtype, shape) in enumerate(tensors)]
