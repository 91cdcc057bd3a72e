"""What the names that stand where transformers has them refuse, and which device they choose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nemotron_errors import CheckpointError, ConfigError, MissingDependencyError, RequestError, TokenizerError

import nemotron_export
from nemotron_export import AutoModelForCausalLM, AutoTokenizer, infer_device
from nemotron_export.model import placement

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"


def _devices(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    monkeypatch.setattr(placement, "device_count", lambda kind: int(kind in kinds))


@pytest.fixture(autouse=True)
def _cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _devices(monkeypatch, "cpu")


def test_infer_device_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert infer_device() == "cpu"
    _devices(monkeypatch, "cpu", "mps")
    assert infer_device() == "mps"
    _devices(monkeypatch, "cpu", "mps", "cuda")
    assert infer_device() == "cuda"


@pytest.mark.parametrize("device_map", [None, "cpu", "auto", torch.device("cpu"), {"": "cpu"}], ids=str)
def test_one_device(device_map: Any) -> None:
    assert AutoModelForCausalLM.from_pretrained(DEMO, device_map=device_map).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "cpu", "lm_head": "cuda:0"}, "one device for the whole model"),
        ({"model": 0, "lm_head": 1}, "a map over 0, 1"),
        ({}, "no device"),
        ("disk", "cpu, cuda, cuda:N, mps or auto"),
        ("meta", "cpu, cuda, cuda:N, mps or auto"),
        (1.5, "cpu, cuda, cuda:N, mps or auto"),
    ],
)
def test_device_maps_that_are_refused(device_map: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        AutoModelForCausalLM.from_pretrained(DEMO, device_map=device_map)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0, "mps"])
def test_a_device_that_is_missing(device: str | int) -> None:
    with pytest.raises(MissingDependencyError, match=r"found 0 (cuda|mps) devices"):
        AutoModelForCausalLM.from_pretrained(DEMO, device_map=device)


def test_arguments_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="dtype: found float64"):
        AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float64)
    with pytest.raises(ConfigError, match="attn_implementation"):
        AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation="flash_attention_2")
    with pytest.raises(CheckpointError, match="no such folder"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="revision"):
        AutoTokenizer.from_pretrained(DEMO, revision="main")
    with pytest.raises(TokenizerError, match="neither"):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(RequestError, match="NemotronPreTrainedModel"):
        nemotron_export.NemotronPreTrainedModel.from_pretrained(DEMO)


def test_a_base_model_from_a_causal_checkpoint() -> None:
    base = nemotron_export.NemotronModel.from_pretrained(DEMO)
    whole = nemotron_export.NemotronForCausalLM.from_pretrained(DEMO)
    assert torch.equal(base.embed_tokens.weight, whole.model.embed_tokens.weight)


def test_tokenizer_arguments_that_are_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    with pytest.raises(RequestError, match="padding=True"):
        tokenizer(["a", "a longer text"], return_tensors="pt")
    with pytest.raises(RequestError, match="return_tensors: found 'tf'"):
        tokenizer.encode("a", return_tensors="tf")
    with pytest.raises(RequestError, match="padding_side: found 'both'"):
        tokenizer(["a", "a longer text"], padding=True, padding_side="both")
    with pytest.raises(RequestError, match="padding: found 'max'"):
        tokenizer("a", padding="max")
    with pytest.raises(RequestError, match="input_ids: found lists"):
        tokenizer("a").to("cpu")
    with pytest.raises(TokenizerError, match="token id 4096"):
        tokenizer.decode([4096])
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = tokenizer("a").token_type_ids


def test_special_tokens_that_only_the_config_tells(tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    bare = AutoTokenizer.from_pretrained(tmp_path)
    assert (bare.bos_token_id, bare.eos_token_id, bare.pad_token_id) == (None, None, None)
    with pytest.raises(RequestError, match="no pad token"):
        bare(["a", "a longer text"], padding=True)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [3, 5], "pad_token_id": 0}), encoding="utf-8")
    told = AutoTokenizer.from_pretrained(tmp_path)
    assert (told.eos_token_id, told.pad_token_id, told.padding_side) == (3, 0, "right")
    named = {"eos_token": {"content": "<unk>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 1


def test_a_broken_tokenizer_config(tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        AutoTokenizer.from_pretrained(tmp_path)
