"""Graph passes, one file each; a target is a list of them."""

from nemotron_graphs.passes.bind_rope_tables import BindRopeTablesPass
from nemotron_graphs.passes.bind_weights import BindWeightsPass
from nemotron_graphs.passes.canonicalize_shapes import CanonicalizeShapesPass
from nemotron_graphs.passes.check_cache_readers import CheckCacheReadersPass
from nemotron_graphs.passes.cleanup import cleanup
from nemotron_graphs.passes.compute_in_float32 import ComputeInFloat32Pass
from nemotron_graphs.passes.drop_unused_inputs import DropUnusedInputsPass
from nemotron_graphs.passes.eliminate_zero_sums import EliminateZeroSumsPass
from nemotron_graphs.passes.fix_dim import FixDimPass
from nemotron_graphs.passes.fold_constants import FoldConstantsPass
from nemotron_graphs.passes.foldable_gamma import FoldableGammaPass
from nemotron_graphs.passes.form_group_query_attention import FormGroupQueryAttentionPass
from nemotron_graphs.passes.form_layernorm_linear import FormLayerNormLinearPass
from nemotron_graphs.passes.form_linear_residual import FormLinearResidualPass
from nemotron_graphs.passes.form_packed_rotary_cached_attention import FormPackedRotaryCachedAttentionPass
from nemotron_graphs.passes.form_packed_rotary_kv_cache_update import FormPackedRotaryKVCacheUpdatePass
from nemotron_graphs.passes.form_rotary_kv_cache_update import FormRotaryKVCacheUpdatePass
from nemotron_graphs.passes.form_skip_layer_normalization import FormSkipLayerNormalizationPass
from nemotron_graphs.passes.genai_attention_mask import GenaiAttentionMaskPass
from nemotron_graphs.passes.genai_full_logits import GenaiFullLogitsPass
from nemotron_graphs.passes.genai_names import GenaiNamesPass
from nemotron_graphs.passes.greedy_tokens import GreedyTokensPass
from nemotron_graphs.passes.infer_shapes import InferShapesPass
from nemotron_graphs.passes.inline_dialect_ops import InlineDialectOpsPass
from nemotron_graphs.passes.lower_cached_attention import LowerCachedAttentionPass
from nemotron_graphs.passes.lower_kv_cache_update import LowerKVCacheUpdatePass
from nemotron_graphs.passes.lower_linear_to_fused_matmul import LowerLinearToFusedMatMulPass
from nemotron_graphs.passes.lower_linear_to_matmul_nbits import LowerLinearToMatMulNBitsPass
from nemotron_graphs.passes.lower_partial_rotary_embedding import LowerPartialRotaryEmbeddingPass
from nemotron_graphs.passes.pack_qkv import PackQKVPass
from nemotron_graphs.passes.set_opset import SetOpsetPass
from nemotron_graphs.passes.widen_output import WidenOutputPass

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
    "GenaiAttentionMaskPass",
    "GenaiFullLogitsPass",
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
