"""The Triton kernels, one file each; their launch rules lie beside this folder and need no Triton."""

from __future__ import annotations

from typing import Any

from nemotron_plugins.kernels.argmax import argmax_combine_kernel, argmax_kernel
from nemotron_plugins.kernels.cached_attention_decode import (
    cached_attention_combine_kernel,
    cached_attention_decode_kernel,
)
from nemotron_plugins.kernels.cached_attention_prefill import cached_attention_prefill_kernel
from nemotron_plugins.kernels.candidates import candidates_kernel, candidates_merge_kernel
from nemotron_plugins.kernels.layernorm_linear import layernorm_linear_kernel
from nemotron_plugins.kernels.layernorm_rows import layernorm_rows_kernel
from nemotron_plugins.kernels.linear_residual import linear_residual_kernel
from nemotron_plugins.kernels.rotary_cached_attention_decode import rotary_cached_attention_decode_kernel
from nemotron_plugins.kernels.rotary_kv_cache_update import rotary_kv_cache_update_kernel

__all__ = ["KERNELS"]

KERNELS: dict[str, Any] = {
    kernel.__name__: kernel
    for kernel in (
        rotary_kv_cache_update_kernel,
        rotary_cached_attention_decode_kernel,
        cached_attention_decode_kernel,
        cached_attention_combine_kernel,
        cached_attention_prefill_kernel,
        layernorm_rows_kernel,
        layernorm_linear_kernel,
        linear_residual_kernel,
        argmax_kernel,
        argmax_combine_kernel,
        candidates_kernel,
        candidates_merge_kernel,
    )
}
