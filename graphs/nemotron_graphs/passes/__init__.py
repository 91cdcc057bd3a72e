"""Graph passes, one file each; a target is a list of them."""

from nemotron_graphs.passes.bind.drop_unused_inputs import DropUnusedInputsPass
from nemotron_graphs.passes.bind.fix_dim import FixDimPass
from nemotron_graphs.passes.bind.rope_tables import BindRopeTablesPass
from nemotron_graphs.passes.bind.weights import BindWeightsPass
from nemotron_graphs.passes.check_cache_readers import CheckCacheReadersPass
from nemotron_graphs.passes.fuse.group_query_attention import FormGroupQueryAttentionPass
from nemotron_graphs.passes.fuse.layernorm_linear import FormLayerNormLinearPass
from nemotron_graphs.passes.fuse.linear_residual import FormLinearResidualPass
from nemotron_graphs.passes.fuse.packed_rotary_cached_attention import FormPackedRotaryCachedAttentionPass
from nemotron_graphs.passes.fuse.packed_rotary_kv_cache_update import FormPackedRotaryKVCacheUpdatePass
from nemotron_graphs.passes.fuse.qkv import PackQKVPass
from nemotron_graphs.passes.fuse.rotary_kv_cache_update import FormRotaryKVCacheUpdatePass
from nemotron_graphs.passes.fuse.skip_layer_normalization import FormSkipLayerNormalizationPass
from nemotron_graphs.passes.genai.attention_mask import GenaiAttentionMaskPass
from nemotron_graphs.passes.genai.names import GenaiNamesPass
from nemotron_graphs.passes.lower.cached_attention import LowerCachedAttentionPass
from nemotron_graphs.passes.lower.compute_in_float32 import ComputeInFloat32Pass
from nemotron_graphs.passes.lower.inline_dialect_ops import InlineDialectOpsPass
from nemotron_graphs.passes.lower.kv_cache_update import LowerKVCacheUpdatePass
from nemotron_graphs.passes.lower.linear_to_fused_matmul import LowerLinearToFusedMatMulPass
from nemotron_graphs.passes.lower.linear_to_matmul_nbits import LowerLinearToMatMulNBitsPass
from nemotron_graphs.passes.lower.partial_rotary_embedding import LowerPartialRotaryEmbeddingPass
from nemotron_graphs.passes.lower.set_opset import SetOpsetPass
from nemotron_graphs.passes.matching import FusionPass
from nemotron_graphs.passes.outputs.full_logits import FullLogitsPass
from nemotron_graphs.passes.outputs.greedy_tokens import GreedyTokensPass
from nemotron_graphs.passes.outputs.widen import WidenOutputPass
from nemotron_graphs.passes.simplify.canonicalize_shapes import CanonicalizeShapesPass
from nemotron_graphs.passes.simplify.cleanup import cleanup
from nemotron_graphs.passes.simplify.eliminate_zero_sums import EliminateZeroSumsPass
from nemotron_graphs.passes.simplify.fold_constants import FoldConstantsPass
from nemotron_graphs.passes.simplify.foldable_gamma import FoldableGammaPass
from nemotron_graphs.passes.simplify.infer_shapes import InferShapesPass

__all__ = [
    "BindRopeTablesPass",
    "BindWeightsPass",
    "CanonicalizeShapesPass",
    "CheckCacheReadersPass",
    "ComputeInFloat32Pass",
    "DropUnusedInputsPass",
    "EliminateZeroSumsPass",
    "FixDimPass",
    "FoldConstantsPass",
    "FoldableGammaPass",
    "FormGroupQueryAttentionPass",
    "FormLayerNormLinearPass",
    "FormLinearResidualPass",
    "FormPackedRotaryCachedAttentionPass",
    "FormPackedRotaryKVCacheUpdatePass",
    "FormRotaryKVCacheUpdatePass",
    "FormSkipLayerNormalizationPass",
    "FullLogitsPass",
    "FusionPass",
    "GenaiAttentionMaskPass",
    "GenaiNamesPass",
    "GreedyTokensPass",
    "InferShapesPass",
    "InlineDialectOpsPass",
    "LowerCachedAttentionPass",
    "LowerKVCacheUpdatePass",
    "LowerLinearToFusedMatMulPass",
    "LowerLinearToMatMulNBitsPass",
    "LowerPartialRotaryEmbeddingPass",
    "PackQKVPass",
    "SetOpsetPass",
    "WidenOutputPass",
    "cleanup",
]
