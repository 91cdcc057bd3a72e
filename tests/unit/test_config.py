"""NemotronConfig: defaults, both RoPE layouts, what is kept and what is written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nemotron_errors import ConfigError
from support.models import config_dict

from nemotron_export.config.config import NemotronConfig

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def _without_rope(**changes: Any) -> dict[str, Any]:
    values = config_dict(**changes)
    if "rope_parameters" not in changes:
        del values["rope_parameters"]
    return values


def test_defaults() -> None:
    config = NemotronConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (256000, 6144, 24576)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (32, 48, 48)
    assert (config.head_dim, config.rotary_dim, config.num_key_value_groups) == (128, 64, 1)
    assert (config.hidden_act, config.max_position_embeddings) == ("relu2", 4096)
    assert (config.initializer_range, config.norm_eps, config.attention_dropout) == (0.0134, 1e-5, 0.0)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, 2, 3)
    assert (config.use_cache, config.tie_word_embeddings) == (True, False)
    assert (config.attention_bias, config.mlp_bias) == (False, False)
    assert config.rope_parameters == DEFAULT_ROPE
    assert config.num_labels == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DEFAULT_ROPE),
        ({"rope_parameters": None}, DEFAULT_ROPE),
        ({"rope_theta": 5e5}, {**DEFAULT_ROPE, "rope_theta": 5e5}),
        ({"partial_rotary_factor": 1.0}, {**DEFAULT_ROPE, "partial_rotary_factor": 1.0}),
        ({"rope_percent": 0.25}, {**DEFAULT_ROPE, "partial_rotary_factor": 0.25}),
        ({"rope_percentage": 0.25}, {**DEFAULT_ROPE, "partial_rotary_factor": 0.25}),
        ({"rope_percent": 0.5, "rope_percentage": 0.5, "partial_rotary_factor": 0.5}, DEFAULT_ROPE),
        ({"rope_scaling": None, "rope_theta": 10000.0}, DEFAULT_ROPE),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.25},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
            {**DEFAULT_ROPE, "rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "rope_theta": 500.0},
            {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            {**DEFAULT_ROPE, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096},
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings": 128},
            {**DEFAULT_ROPE, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_rope_layouts(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert NemotronConfig.from_dict(_without_rope(**changes)).rope_parameters == expected


def test_old_layout_in_the_constructor() -> None:
    config = NemotronConfig(rope_theta=500.0, partial_rotary_factor=0.25, rope_scaling={"type": "linear", "factor": 2})
    assert (config.rope_theta, config.partial_rotary_factor) == (500.0, 0.25)
    assert config.rope_scaling == config.rope_parameters
    assert config.replace(num_hidden_layers=1).rope_parameters == config.rope_parameters
    assert NemotronConfig().rope_scaling is None


def test_kv_channels_is_head_dim() -> None:
    assert NemotronConfig.from_dict(config_dict(kv_channels=32)).head_dim == 32
    assert NemotronConfig.from_dict(config_dict(kv_channels=32, head_dim=32)).head_dim == 32
    with pytest.raises(ConfigError, match="head_dim 16 and kv_channels 32"):
        NemotronConfig.from_dict(config_dict(kv_channels=32, head_dim=16))


def test_dtype_under_both_names() -> None:
    assert NemotronConfig.from_dict(config_dict(torch_dtype="bfloat16")).dtype == "bfloat16"
    assert NemotronConfig.from_dict(config_dict(dtype="torch.float16")).dtype == "float16"
    assert NemotronConfig.from_dict(config_dict(dtype=None, torch_dtype="float32")).dtype == "float32"
    assert NemotronConfig.from_dict(config_dict(torch_dtype="auto")).dtype is None


def test_eos_token_ids() -> None:
    assert NemotronConfig.from_dict(config_dict(eos_token_id=[3, 5])).eos_token_ids == (3, 5)
    assert NemotronConfig.from_dict(config_dict(eos_token_id=None)).eos_token_ids == ()
    assert NemotronConfig.from_dict(config_dict()).eos_token_ids == (3,)


def test_labels() -> None:
    assert NemotronConfig.from_dict(config_dict(id2label={"0": "a", "1": "b", "2": "c"})).num_labels == 3
    assert NemotronConfig.from_dict(config_dict(num_labels=1)).num_labels == 1


@pytest.mark.parametrize(
    "harmless",
    [
        {"_name_or_path": "x", "transformers_version": "4.44.0", "auto_map": {"AutoConfig": "y"}, "use_cache": False},
        {"id2label": {"0": "A"}, "label2id": {"A": 0}, "is_decoder": True, "max_length": 20, "top_k": 50},
        {"sliding_window": None, "num_experts": 0, "qk_layernorm": False, "layer_types": [], "is_causal": True},
        {"_attn_implementation_autoset": True, "pretraining_tp": 1, "tokenizer_class": "T"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_harmless_keys_pass(harmless: dict[str, Any]) -> None:
    plain = NemotronConfig.from_dict(config_dict())
    assert NemotronConfig.from_dict(config_dict(**harmless)).replace(extra={}, use_cache=True) == plain


@pytest.mark.parametrize("rope_type", ["default", "linear"])
def test_what_is_written_is_read_back(rope_type: str, tmp_path: Path) -> None:
    rope = {"rope_type": rope_type} | ({"factor": 2.0} if rope_type == "linear" else {})
    values = config_dict(
        rope_parameters=rope,
        architectures=["NemotronForCausalLM"],
        id2label={"0": "A"},
        dtype="bfloat16",
        pad_token_id=0,
    )
    config = NemotronConfig.from_dict(values)
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert NemotronConfig.from_json_file(path) == config
    assert json.loads(path.read_text(encoding="utf-8"))["model_type"] == "nemotron"


def test_replace_checks_anew() -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers = 0"):
        NemotronConfig().replace(num_hidden_layers=0)
