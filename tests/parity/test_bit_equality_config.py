"""Configs travel both ways between transformers and this project without a change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.models import ODD_CONFIGS, config_dict, oracle_config

from nemotron_export.config.config import NemotronConfig

configs = pytest.mark.parametrize("changes", ODD_CONFIGS.values(), ids=ODD_CONFIGS.keys())
_FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "hidden_act max_position_embeddings initializer_range norm_eps use_cache pad_token_id bos_token_id eos_token_id "
    "tie_word_embeddings rope_parameters attention_bias attention_dropout mlp_bias"
).split()


@configs
def test_what_we_write_transformers_reads(changes: dict[str, Any], tmp_path: Path) -> None:
    config = NemotronConfig.from_dict(config_dict(**changes, pad_token_id=0))
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, transformers.NemotronConfig)
    assert {name: getattr(read, name) for name in _FIELDS} == {name: getattr(config, name) for name in _FIELDS}


@configs
def test_what_transformers_writes_we_read(changes: dict[str, Any], tmp_path: Path) -> None:
    written = oracle_config(config_dict(**changes, id2label={"0": "A", "1": "B", "2": "C"}))
    written.architectures = ["NemotronForCausalLM"]
    written.save_pretrained(tmp_path)
    config = NemotronConfig.from_json_file(tmp_path / "config.json")
    assert {name: getattr(config, name) for name in _FIELDS} == {name: getattr(written, name) for name in _FIELDS}
    assert config.num_labels == written.num_labels == 3


def test_defaults_are_those_of_transformers() -> None:
    ours, oracle = NemotronConfig(), transformers.NemotronConfig()
    different = {name for name in _FIELDS if getattr(ours, name) != getattr(oracle, name)}
    # documented as num_attention_heads where None, which is what ours resolves it to
    assert different == {"num_key_value_heads"}
    assert json.loads(ours.to_json())["num_key_value_heads"] == ours.num_attention_heads == 48
