"""Targets of TensorRT: two graphs of one trace, for two engines that share their weights, caches and kernels.

Both graphs take ``input_ids`` int64 [batch, tokens], ``query_start`` int64 [batch], ``k_cache.{l}`` and ``v_cache.{l}``
[batch, G, cache_len, D] and the weights, and give their first output (``logits``) in float32 [batch, positions, C] and
``k_cache_out.{l}``, ``v_cache_out.{l}``, whose memory is that of the caches taken. The prefill graph takes
``logits_index`` int64 [batch, positions] too; the decode graph one new token per sequence, which gets an output: tokens
and positions are 1.
"""

from __future__ import annotations

from dataclasses import replace

from nemotron_graphs import passes
from nemotron_graphs.targets.target import GraphRecipe, LoweringContext, Passes, Target

__all__ = ["NATIVE_OPSET", "tensorrt", "tensorrt_native", "tensorrt_rtx"]

# the first with TensorScatter, and with an Attention that goes with it
NATIVE_OPSET = 24


def _one_token() -> Passes:
    """One new token per sequence, which gets an output."""
    return passes.FullLogitsPass(), passes.FixDimPass("tokens", 1)


def _common_ending(context: LoweringContext) -> Passes:
    """What every TensorRT graph's passes end with, once its ops are lowered."""
    import onnx_ir as ir

    low = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    # what TensorRT computes with less than PyTorch's kernels do where it may; bf16 products have no sums but float32's
    float32_inside = {"Gemm": low[:1], "LayerNormalization": low}
    return (
        passes.CanonicalizeShapesPass(),
        passes.cleanup(),
        passes.EliminateZeroSumsPass(),
        passes.DropUnusedInputsPass(),
        passes.InferShapesPass(),
        passes.BindRopeTablesPass(context.cos, context.sin),
        passes.ComputeInFloat32Pass(float32_inside),
        passes.CheckCacheReadersPass(),
    )


def _with_plugins(context: LoweringContext, first: Passes = (), fused: Passes = ()) -> Passes:
    """The passes of a graph of plugins; ``first`` and ``fused`` are the decode graph's own."""
    return (
        passes.CheckCacheReadersPass(),
        *first,
        passes.FormRotaryKVCacheUpdatePass(),
        passes.FormPackedRotaryKVCacheUpdatePass(),
        *fused,
        passes.WidenOutputPass(),
        # a plugin's op has no function next to it, which a parser would take instead
        passes.InlineDialectOpsPass(("Linear",)),
        *_common_ending(context),
    )


def _decode(context: LoweringContext) -> Passes:
    fused = (
        passes.FormPackedRotaryCachedAttentionPass(),
        passes.FormLayerNormLinearPass(),
        passes.FormLinearResidualPass(),
    )
    return _with_plugins(context, _one_token(), fused)


def _native(context: LoweringContext, first: Passes = ()) -> Passes:
    """The passes of a graph of layers that TensorRT has itself; every weight is an input of its own."""
    return (
        passes.CheckCacheReadersPass(),
        *first,
        # TensorRT's layer wants a cache of a known length
        passes.FixDimPass("cache_len", len(context.cos)),
        passes.SetOpsetPass(NATIVE_OPSET),
        passes.LowerPartialRotaryEmbeddingPass(),
        passes.LowerKVCacheUpdatePass(),
        passes.LowerCachedAttentionPass(),
        passes.WidenOutputPass(),
        passes.InlineDialectOpsPass(),
        *_common_ending(context),
    )


_ROTARY = {"RotaryKVCacheUpdate": lambda n: n.layers, "PackedRotaryKVCacheUpdate": lambda n: n.layers}

tensorrt = Target(
    name="tensorrt",
    description="TensorRT engines for one kind of NVIDIA GPU, with kernels of our own for decoding",
    dtypes=("bfloat16", "float16"),
    graphs={
        "prefill": GraphRecipe(
            "graphs/prefill.onnx", _with_plugins, _ROTARY, ("PackedRotaryKVCacheUpdate", "CachedAttention")
        ),
        "decode": GraphRecipe(
            "graphs/decode.onnx",
            _decode,
            {
                **_ROTARY,
                "PackedRotaryCachedAttention": lambda n: n.layers,
                "LayerNormLinear": lambda n: 2 * n.layers - n.fp32_mlp_layers + n.heads,
                "LinearResidual": lambda n: 2 * n.layers - n.fp32_mlp_layers,
            },
            ("PackedRotaryCachedAttention", "LayerNormLinear", "LinearResidual"),
        ),
    },
    executor="tensorrt",
    provider="TensorRT",
    device="cuda",
    extra="tensorrt",
    builds_with="device",
    session={"prefill_rows": "all"},
    stored_dtype_first=True,
)

# the same engines of TensorRT's own layers, which 10.15 has: `--no-plugins`
tensorrt_native = replace(
    tensorrt,
    graphs={
        "prefill": GraphRecipe("graphs/prefill.onnx", _native),
        "decode": GraphRecipe("graphs/decode.onnx", lambda context: _native(context, _one_token())),
    },
)

tensorrt_rtx = Target(
    name="tensorrt-rtx",
    description="TensorRT for RTX engines of NVIDIA's native layers for several GPU architectures, built without a GPU",
    dtypes=("bfloat16", "float16"),
    # one engine takes prompts and single tokens, by two profiles
    graphs={"model": GraphRecipe("graphs/model.onnx", _native)},
    executor="tensorrt-rtx",
    provider="TensorRT-RTX",
    device="cuda",
    extra="tensorrt-rtx",
    extra_runs=False,
    builds_with="extra",
    runner="NVIDIA's runtime for RTX",
    session={"prefill_rows": "all"},
    stored_dtype_first=True,
)
