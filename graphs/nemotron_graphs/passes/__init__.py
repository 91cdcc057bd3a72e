"""Graph passes, one file each; a target is a list of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# pass → its file. Imported when asked for (PEP 562): a target can be read without torch and onnx.
_HOMES = {
    "DropUnusedInputsPass": "bind.drop_unused_inputs",
    "FixDimPass": "bind.fix_dim",
    "BindRopeTablesPass": "bind.rope_tables",
    "BindWeightsPass": "bind.weights",
    "CheckCacheReadersPass": "check_cache_readers",
    "FormGroupQueryAttentionPass": "fuse.group_query_attention",
    "FormLayerNormLinearPass": "fuse.layernorm_linear",
    "FormLinearResidualPass": "fuse.linear_residual",
    "FormPackedRotaryCachedAttentionPass": "fuse.packed_rotary_cached_attention",
    "FormPackedRotaryKVCacheUpdatePass": "fuse.packed_rotary_kv_cache_update",
    "PackQKVPass": "fuse.qkv",
    "FormRotaryKVCacheUpdatePass": "fuse.rotary_kv_cache_update",
    "FormSkipLayerNormalizationPass": "fuse.skip_layer_normalization",
    "GenaiAttentionMaskPass": "genai.attention_mask",
    "GenaiNamesPass": "genai.names",
    "LowerCachedAttentionPass": "lower.cached_attention",
    "ComputeInFloat32Pass": "lower.compute_in_float32",
    "InlineDialectOpsPass": "lower.inline_dialect_ops",
    "LowerKVCacheUpdatePass": "lower.kv_cache_update",
    "LowerLinearToFusedMatMulPass": "lower.linear_to_fused_matmul",
    "LowerLinearToMatMulNBitsPass": "lower.linear_to_matmul_nbits",
    "LowerPartialRotaryEmbeddingPass": "lower.partial_rotary_embedding",
    "SetOpsetPass": "lower.set_opset",
    "FusionPass": "matching",
    "FullLogitsPass": "outputs.full_logits",
    "GreedyTokensPass": "outputs.greedy_tokens",
    "WidenOutputPass": "outputs.widen",
    "CanonicalizeShapesPass": "simplify.canonicalize_shapes",
    "cleanup": "simplify.cleanup",
    "EliminateZeroSumsPass": "simplify.eliminate_zero_sums",
    "FoldConstantsPass": "simplify.fold_constants",
    "FoldableGammaPass": "simplify.foldable_gamma",
    "InferShapesPass": "simplify.infer_shapes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
