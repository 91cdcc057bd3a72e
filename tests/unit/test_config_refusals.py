"""Every config that this project cannot reproduce is refused, with a message that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nemotron_errors import ConfigError
from support.models import config_dict

from nemotron_export.checkpoint.expected import expected_tensors
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import (
    NemotronForCausalLM,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
)


def _rope(rope_type: Any, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, **parameters}}


# what is changed → a part of the message
REFUSED: list[tuple[dict[str, Any], str]] = [
    # another model
    ({"model_type": "llama"}, "model_type 'llama'"),
    ({"model_type": None}, "model_type None"),
    ({"model_type": "nemotron_h"}, "model_type 'nemotron_h'"),
    ({"architectures": ["LlamaForCausalLM"]}, "architecture LlamaForCausalLM"),
    ({"architectures": "NemotronForCausalLM"}, "expected a list of class names"),
    ({"architectures": [1]}, "expected a list of class names"),
    ({"hidden_act": "silu"}, "hidden_act = 'silu'; expected 'relu2'"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ({"hidden_act": None}, "hidden_act = None"),
    ({"hidden_act": ["relu2"]}, "hidden_act = \\['relu2'\\]"),
    # keys that change the maths
    ({"sliding_window": 128}, "sliding_window = 128"),
    ({"rms_norm_eps": 1e-6}, "rms_norm_eps = 1e-06"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ({"qk_layernorm": True}, "qk_layernorm = true"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"use_parallel_residual": True}, "use_parallel_residual = true"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ({"num_experts": 8}, "num_experts = 8"),
    ({"per_layer_config": {"0": {}}}, "per_layer_config"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder = true"),
    ({"is_causal": False}, "is_causal = False; expected true"),
    ({"query_pre_attn_scalar": 0.1}, "query_pre_attn_scalar"),
    # sizes
    ({"hidden_size": "64"}, "hidden_size = '64'; expected a whole number"),
    ({"hidden_size": 64.0}, "hidden_size = 64.0"),
    ({"hidden_size": -64}, "hidden_size = -64"),
    ({"hidden_size": 2**40}, "hidden_size = 1099511627776"),
    ({"vocab_size": 0}, "vocab_size = 0"),
    ({"vocab_size": True}, "vocab_size = True"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    ({"num_hidden_layers": None}, "num_hidden_layers = None"),
    ({"num_attention_heads": [4]}, "num_attention_heads = \\[4\\]"),
    ({"intermediate_size": 1.5}, "intermediate_size = 1.5"),
    ({"max_position_embeddings": "4096"}, "max_position_embeddings = '4096'"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 and num_key_value_heads 3"),
    ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
    ({"num_attention_heads": 6, "num_key_value_heads": 6}, "num_attention_heads 6 and no head_dim"),
    ({"head_dim": 15}, "a rotary width of 7; expected an even width from 2 to 15"),
    ({"head_dim": 0}, "head_dim = 0"),
    ({"head_dim": True}, "head_dim = True"),
    # numbers, flags, ids
    ({"norm_eps": "1e-5"}, "norm_eps = '1e-5'"),
    ({"norm_eps": 0.0}, "norm_eps = 0.0"),
    ({"norm_eps": float("nan")}, "norm_eps = nan"),
    ({"norm_eps": float("inf")}, "norm_eps = inf"),
    ({"norm_eps": True}, "norm_eps = True"),
    ({"initializer_range": -0.1}, "initializer_range = -0.1"),
    ({"attention_dropout": 1.0}, "attention_dropout = 1.0"),
    ({"attention_bias": "true"}, "attention_bias = 'true'; expected true or false"),
    ({"mlp_bias": 1}, "mlp_bias = 1"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings = None"),
    ({"use_cache": 0}, "use_cache = 0"),
    ({"pad_token_id": 97}, "pad_token_id = 97; expected a token id from 0 to 96"),
    ({"pad_token_id": -1}, "pad_token_id = -1"),
    ({"bos_token_id": "2"}, "bos_token_id = '2'"),
    ({"eos_token_id": [3, 97]}, "eos_token_id = \\[3, 97\\]"),
    ({"eos_token_id": [None]}, "eos_token_id = \\[None\\]"),
    ({"eos_token_id": {"a": 1}}, "eos_token_id"),
    ({"dtype": "int8"}, "dtype = 'int8'"),
    ({"torch_dtype": {"": "bfloat16"}}, "dtype ="),
    # RoPE
    ({"rope_theta": 500.0}, "rope_theta = 10000.0 in rope_parameters and 500.0 in the top level"),
    ({"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.5 in rope_parameters and 0.25"),
    ({"rope_percent": 0.25}, "0.25 in the top level \\(rope_percent\\)"),
    ({"rope_parameters": None, "rope_percent": 0.5, "rope_percentage": 1.0}, "rope_percentage"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'default' in rope_parameters and 'linear'"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "'linear' in rope_scaling"),
    ({"rope_parameters": [1]}, "rope_parameters = \\[1\\]; expected an object"),
    ({"rope_parameters": None, "rope_scaling": "linear"}, "rope_scaling = 'linear'"),
    (_rope("su"), "rope_type = 'su'; expected one of default"),
    (_rope(["linear"]), "rope_type = \\['linear'\\]"),
    (_rope("default", factor=2.0), "factor for rope_type default"),
    (_rope("linear"), "rope_type linear without factor"),
    (_rope("linear", factor=0.5), "factor = 0.5; expected a number of 1 or more"),
    (_rope("linear", factor="2"), "factor = '2'"),
    (_rope("linear", factor=float("nan")), "factor = nan"),
    (_rope("linear", factor=2.0, beta_fast=3), "beta_fast for rope_type linear"),
    (_rope("dynamic", factor=2.0, partial_rotary_factor=0.125), "dynamic with a rotary width of 2"),
    (_rope("yarn", factor=2.0, truncate=1), "truncate = 1"),
    (_rope("yarn", factor=2.0, original_max_position_embeddings=1), "original_max_position_embeddings = 1"),
    (_rope("yarn", factor=2.0, original_max_position_embeddings=64.5), "original_max_position_embeddings = 64.5"),
    (_rope("longrope", short_factor=[1.0] * 4), "longrope without long_factor"),
    (_rope("longrope", short_factor=[1.0] * 4, long_factor=[1.0] * 3), "3 numbers in long_factor; expected 4"),
    (_rope("longrope", short_factor=[1.0] * 4, long_factor=[1.0, "2"]), "long_factor = \\[1.0, '2'\\]"),
    (_rope("longrope", short_factor=2.0, long_factor=[1.0] * 4), "short_factor = 2.0"),
    (_rope("llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0), "less than high_freq_factor"),
    (_rope("llama3", factor=8.0), "llama3 without high_freq_factor, low_freq_factor"),
    (_rope("default", rope_theta=0), "rope_theta = 0"),
    (_rope("default", rope_theta=1.0), "rope_theta = 1.0; expected a number above 1"),
    (_rope("default", rope_theta="1e4"), "rope_theta = '1e4'"),
    (_rope("default", partial_rotary_factor=1.5), "partial_rotary_factor = 1.5"),
    (_rope("default", partial_rotary_factor=-0.5), "partial_rotary_factor = -0.5"),
    (_rope("default", partial_rotary_factor=0.01), "a rotary width of 0"),
]


@pytest.mark.parametrize(
    ("changes", "message"), REFUSED, ids=[json.dumps(changes, default=str)[:70] for changes, _ in REFUSED]
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        NemotronConfig.from_dict(config_dict(**changes), where="some/config.json")
    assert caught.value.where == "some/config.json"
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "broken JSON"),
        (b"", "broken JSON"),
        (b"[]", "a JSON list; expected a model's config as one JSON object"),
        (b"null", "a JSON NoneType"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"model_type": "nemotron", "model_type": "llama"}', "the key 'model_type' twice"),
        (b'{"a":' * 100000, "nested too deeply"),
        (b'{"norm_eps": NaN, "model_type": "nemotron"}', "NaN, which is not JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b', "model_type": "nemotron"}', "broken JSON"),
    ],
    ids=["open", "empty", "list", "null", "not-utf8", "twice", "deep", "nan", "huge-number"],
)
def test_broken_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        NemotronConfig.from_json_file(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({"id2label": 5}, "id2label = 5"),
        ({"id2label": ["A", "B"]}, "id2label = ['A', 'B']"),
        ({"id2label": "AB"}, "id2label = 'AB'"),
        ({"id2label": {}}, "id2label = {}"),
        ({"num_labels": -3}, "num_labels = -3"),
        ({"num_labels": 0}, "num_labels = 0"),
        ({"num_labels": "3"}, "num_labels = '3'"),
        ({"num_labels": 3.0}, "num_labels = 3.0"),
        ({"num_labels": True}, "num_labels = True"),
        ({"num_labels": 2**31}, "num_labels = 2147483648"),
    ],
    ids=str,
)
def test_labels_are_refused_where_a_head_needs_them(extra: dict[str, Any], found: str) -> None:
    config = NemotronConfig.from_dict(config_dict(**extra))
    calls: list[Callable[[], object]] = [lambda: config.num_labels]
    for head in (NemotronForSequenceClassification, NemotronForTokenClassification):
        calls.append(lambda head=head: head(config))
    for task in ("sequence-classification", "token-classification"):
        calls.append(lambda task=task: expected_tensors(config, task))
    for call in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        assert (caught.value.found, caught.value.where) == (found, "config.json")
        assert caught.value.expected in ("an object: class -> label", "a whole number of 1 or more")
    # the other models have no use for them
    assert "lm_head.weight" in expected_tensors(config)
    with torch.device("meta"):
        assert NemotronForCausalLM(config).lm_head.weight.shape == (97, 64)


def test_labels_that_count() -> None:
    for extra, number in (({}, 2), ({"num_labels": 5}, 5), ({"num_labels": None}, 2)):
        assert NemotronConfig.from_dict(config_dict(**extra)).num_labels == number
    named = config_dict(id2label={"0": "A"}, num_labels=7)
    assert NemotronConfig.from_dict(named).num_labels == 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        NemotronConfig.from_json_file(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="a folder"):
        NemotronConfig.from_json_file(tmp_path)
