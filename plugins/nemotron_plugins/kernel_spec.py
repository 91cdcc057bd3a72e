"""What must be known of a model to choose its kernels and their launches. Needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_plugins.launches.argmax import argmax_combine_rule, argmax_rule
from nemotron_plugins.launches.attention import (
    cached_attention_combine_rule,
    cached_attention_decode_rule,
    cached_attention_prefill_rule,
    decode_splits,
    rotary_cached_attention_decode_rule,
)
from nemotron_plugins.launches.candidates import candidates_merge_rule, candidates_rule
from nemotron_plugins.launches.launch import Launch
from nemotron_plugins.launches.linear import (
    ROW_BUCKETS,
    layernorm_linear_rule,
    layernorm_rows_rule,
    linear_residual_rule,
    row_bucket,
)
from nemotron_plugins.launches.rotary import rotary_kv_cache_update_rule

__all__ = ["KernelSpec"]

_FIRST_WITH_PDL = 90
# of a prefill launch: any number that is not few
_MANY_TOKENS = 1 << 20


@dataclass(frozen=True)
class KernelSpec:
    """A model's shapes and the limits of a build.

    Attributes:
        query_heads: H.
        kv_heads: G.
        head_dim: D.
        rotary_dim: lanes of a head that are rotated.
        hidden: width of the residual stream.
        intermediate: width between the MLP's two projections.
        outputs: rows of the head's weight (the vocabulary, or classes); 0 for a model without a head.
        epsilon: of every norm.
        dtype: run dtype: ``bfloat16`` or ``float16``.
        max_batch: rows of a decode step, at most.
        max_seq_len: cache slots of a row, at most.
        multiprocessors: of the GPU.
        attention_bias: whether the four projections of the attention have biases.
        mlp_bias: likewise the MLP's two.
        head_bias: likewise the head.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    hidden: int
    intermediate: int
    outputs: int
    epsilon: float
    dtype: str
    max_batch: int
    max_seq_len: int
    multiprocessors: int
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Numbers of rows that decode kernels are compiled for; a step takes that of :func:`row_bucket`."""
        return tuple(rows for rows in ROW_BUCKETS if rows <= row_bucket(self.max_batch))

    def launches(self, architecture: int) -> dict[str, Launch]:
        """Key → launch, for every kernel; see :class:`nemotron_plugins.library.KernelLibrary` for the keys."""
        pdl = architecture >= _FIRST_WITH_PDL
        heads: dict[str, Any] = {"query_heads": self.query_heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        rotary: dict[str, Any] = {**heads, "rotary_dim": self.rotary_dim, "packed": True, "pdl": pdl}
        found = {
            "packed_rotary_kv_cache_update": rotary_kv_cache_update_rule(**rotary, max_tokens=self.max_batch),
            "packed_rotary_kv_cache_update_prefill": rotary_kv_cache_update_rule(**rotary, max_tokens=_MANY_TOKENS),
            "cached_attention_prefill": cached_attention_prefill_rule(
                **heads, dtype=self.dtype, architecture=architecture, pdl=pdl
            ),
        }
        for rows in self.row_buckets:
            found |= self._decode_attention(heads, rows, pdl)
            found |= self._linears(rows, pdl)
        if self.max_batch > 1:
            found["layernorm_rows"] = layernorm_rows_rule(inputs=self.hidden, epsilon=self.epsilon, pdl=pdl)
        if self.outputs:
            found["argmax"] = argmax_rule(vocab=self.outputs, multiprocessors=self.multiprocessors, pdl=pdl)
            parts = int(found["argmax"].constexprs["PARTS"])
            found["argmax_combine"] = argmax_combine_rule(parts=parts, pdl=pdl)
            found["candidates"] = candidates_rule(vocab=self.outputs, pdl=pdl)
            found["candidates_merge"] = candidates_merge_rule(pdl=pdl)
        return found

    def _decode_attention(self, heads: dict[str, Any], rows: int, pdl: bool) -> dict[str, Launch]:
        splits = decode_splits(
            kv_heads=self.kv_heads, max_rows=rows, slots=self.max_seq_len, multiprocessors=self.multiprocessors
        )
        chosen: dict[str, Any] = {**heads, "dtype": self.dtype, "splits": splits, "pdl": pdl}
        found = {
            f"rotary_cached_attention_decode.r{rows}": rotary_cached_attention_decode_rule(
                **chosen, rotary_dim=self.rotary_dim
            ),
            f"cached_attention_decode.r{rows}": cached_attention_decode_rule(**chosen),
        }
        if splits > 1:
            found[f"cached_attention_combine.r{rows}"] = cached_attention_combine_rule(
                query_heads=self.query_heads, head_dim=self.head_dim, splits=splits, pdl=pdl
            )
        return found

    def _linears(self, rows: int, pdl: bool) -> dict[str, Launch]:
        attention = self.query_heads * self.head_dim
        packed = attention + 2 * self.kv_heads * self.head_dim
        normed = {
            "qkv": (packed, "none", "same", self.attention_bias),
            "up": (self.intermediate, "relu_squared", "same", self.mlp_bias),
            "head": (self.outputs, "none", "float32", self.head_bias),
        }
        added = {"o": (attention, self.attention_bias), "down": (self.intermediate, self.mlp_bias)}
        common: dict[str, Any] = {"dtype": self.dtype, "rows": rows, "pdl": pdl}
        found = {}
        for name, (outputs, activation, output, bias) in normed.items():
            if outputs:
                found[f"layernorm_linear.{name}.r{rows}"] = layernorm_linear_rule(
                    inputs=self.hidden,
                    outputs=outputs,
                    epsilon=self.epsilon,
                    activation=activation,
                    output=output,
                    has_bias=bias,
                    **common,
                )
        for name, (inputs, bias) in added.items():
            found[f"linear_residual.{name}.r{rows}"] = linear_residual_rule(
                inputs=inputs, outputs=self.hidden, has_bias=bias, **common
            )
        return found
