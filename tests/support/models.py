"""Small, odd Nemotron configs, and transformers' models with the same weights as ours."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import transformers
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronForCausalLM

__all__ = ["ODD_CONFIGS", "causal_pair", "config_dict", "oracle_config", "random_model", "randomize", "token_ids"]

M = TypeVar("M", bound=nn.Module)

_SMALL: dict[str, Any] = {
    "model_type": "nemotron",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}


def _rope(rope_type: str, partial: float = 0.5, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10000.0, "partial_rotary_factor": partial, **parameters}


# What each differs in from the small config: every dimension in which a wrong implementation can still look right.
ODD_CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "wide-heads": {"head_dim": 32},
    "narrow-heads": {"head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 3},
    "one-kv-head": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": None},
    "rotary-quarter": {"head_dim": 32, "rope_parameters": _rope("default", 0.25)},
    "rotary-full": {"rope_parameters": _rope("default", 1.0)},
    "rotary-96": {"head_dim": 192, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head-dim-320": {"head_dim": 320, "num_attention_heads": 2, "num_key_value_heads": 1},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "eps-1e-3": {"norm_eps": 1e-3},
    "mlp-as-wide-as-vocab": {"intermediate_size": 97},
    "theta-5e5": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}},
    "linear": {"rope_parameters": _rope("linear", factor=3.0)},
    "dynamic": {"max_position_embeddings": 10, "rope_parameters": _rope("dynamic", factor=2.7)},
    "yarn": {
        "head_dim": 64,
        "rope_parameters": _rope("yarn", factor=4.0, original_max_position_embeddings=512, beta_fast=24, beta_slow=2),
    },
    "yarn-mscale": {
        "head_dim": 64,
        "rope_parameters": _rope(
            "yarn", factor=8.0, original_max_position_embeddings=64, mscale=1.2, mscale_all_dim=0.7, truncate=False
        ),
    },
    "longrope": {
        "max_position_embeddings": 64,
        "rope_parameters": _rope(
            "longrope",
            short_factor=[1.0, 1.1, 1.3, 1.7],
            long_factor=[1.5, 2.5, 4.0, 7.0],
            original_max_position_embeddings=10,
        ),
    },
    "llama3": {
        "head_dim": 64,
        "rope_parameters": _rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256
        ),
    },
}


def config_dict(**changes: Any) -> dict[str, Any]:
    """A small ``config.json`` (2 layers, 64 wide, 97 tokens), with some keys changed."""
    return {**_SMALL, **changes}


def oracle_config(values: dict[str, Any]) -> transformers.NemotronConfig:
    """The same config as transformers reads it."""
    # transformers fills the dict that it is given
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items() if k != "model_type"}
    if values.get("num_key_value_heads") is None:
        # its documentation says so, but its model fails on None
        values["num_key_value_heads"] = values["num_attention_heads"]
    return transformers.NemotronConfig(**values)


@torch.no_grad()
def randomize(model: M, seed: int = 0) -> M:
    """Moves every parameter, norm weights and biases too, away from its initial value, so that errors show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        std = 0.15 if parameter.ndim == 2 else 0.3
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def random_model(
    dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa", seed: int = 0, **changes: Any
) -> NemotronForCausalLM:
    """Our model of a small config, with random weights, in eval mode."""
    config = NemotronConfig.from_dict(config_dict(**changes))
    return randomize(NemotronForCausalLM(config, attn_implementation=attn_implementation).to(dtype).eval(), seed)


def causal_pair(
    values: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    seed: int = 0,
) -> tuple[NemotronForCausalLM, transformers.NemotronForCausalLM]:
    """Our causal model and transformers' with the same random weights, both in eval mode."""
    oracle = transformers.NemotronForCausalLM._from_config(
        oracle_config(values), dtype=dtype, attn_implementation=attn_implementation
    ).eval()
    randomize(oracle, seed)
    ours = NemotronForCausalLM(NemotronConfig.from_dict(values), attn_implementation=attn_implementation)
    ours.to(dtype).eval().load_state_dict(oracle.state_dict(), strict=True)
    return ours, oracle


def token_ids(rows: int, tokens: int, vocab_size: int = 97, seed: int = 1) -> torch.Tensor:
    """Random token ids int64 [rows, tokens]."""
    return torch.randint(0, vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))
