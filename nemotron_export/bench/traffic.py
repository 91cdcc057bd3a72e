"""Bytes that a decode step must read, from a config alone.

    bytes = (parameters - embedding) * bytes of the run dtype + sequences * filled tokens * KV bytes per token

All weights are read once per step, whatever the batch; of the input embedding only a row per token is, which does
not count. A tied lm_head is read whole. A KV cache holds 2 * layers * KV heads * head_dim values per token; over N
steps after P prompt tokens a sequence has P + (N + 1) / 2 filled tokens on average, the step's own included.
Activations and what a cache holds beyond its filled part are not counted: this is what any implementation must read.
"""

from __future__ import annotations

import math

from nemotron_formats.dtypes import item_bytes

from nemotron_export.bench.options import Shape
from nemotron_export.checkpoint.expected import expected_tensors
from nemotron_export.config.config import NemotronConfig

__all__ = ["FORMULA", "kv_bytes_per_token", "read_parameters", "step_bytes", "total_parameters"]

FORMULA = (
    "all weights but the input embedding, in the dtype that computes (quantized ones as codes and scales), "
    "and the filled KV cache, once per step"
)

_EMBEDDING = "model.embed_tokens.weight"


def total_parameters(config: NemotronConfig, *, tied: bool | None = None) -> int:
    """Parameters of the causal model, a tied lm_head counted once; `tied` is the config's own word by default."""
    tied = config.tie_word_embeddings if tied is None else tied
    return read_parameters(config) + (0 if tied else config.vocab_size * config.hidden_size)


def read_parameters(config: NemotronConfig) -> int:
    """Parameters that a decode step reads: all but the input embedding."""
    return sum(math.prod(shape) for name, shape in expected_tensors(config).items() if name != _EMBEDDING)


def kv_bytes_per_token(config: NemotronConfig, dtype: str) -> int:
    """Keys and values of one token of one sequence, all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * item_bytes(dtype)


def step_bytes(weight_bytes: int, kv_bytes: int, shape: Shape) -> float:
    """Bytes that an average decode step of a shape must read; `kv_bytes` per token of a sequence."""
    return weight_bytes + shape.batch * kv_bytes * (shape.prompt_tokens + (shape.new_tokens + 1) / 2)
