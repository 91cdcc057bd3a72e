"""Checkpoints that transformers wrote, loaded here: the weights and the numbers of its own from_pretrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nemotron_errors import CheckpointError
from support.models import config_dict, oracle_config, randomize, token_ids
from support.oracles import HEADS, assert_outputs_equal

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import MODEL_CLASSES, load_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _write(folder: Path, head: str, dtype: torch.dtype, shard: str = "5GB", **changes: Any) -> None:
    config = oracle_config(config_dict(head_dim=32, attention_bias=True, **changes))
    model = randomize(getattr(transformers, head)._from_config(config, dtype=dtype))
    model.save_pretrained(folder, max_shard_size=shard)


@torch.no_grad()
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("run", DTYPES, ids=str)
def test_causal_model_in_every_dtype(stored: torch.dtype, run: torch.dtype, tmp_path: Path) -> None:
    _write(tmp_path, "NemotronForCausalLM", stored, shard="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    oracle = transformers.NemotronForCausalLM.from_pretrained(tmp_path, dtype=run)
    ours = load_model(Checkpoint.open(tmp_path), run)
    assert not ours.training
    assert ours.state_dict().keys() == oracle.state_dict().keys()
    assert all(map(torch.equal, ours.state_dict().values(), oracle.state_dict().values()))
    assert all(p.requires_grad and p.dtype == run for p in ours.parameters())
    assert_outputs_equal(ours(token_ids(2, 9)), oracle(token_ids(2, 9)))


@torch.no_grad()
@pytest.mark.parametrize("task", MODEL_CLASSES)
def test_every_task(task: str, tmp_path: Path) -> None:
    head = MODEL_CLASSES[task].__name__
    assert head in HEADS
    _write(tmp_path, head, torch.bfloat16, pad_token_id=0, id2label={"0": "A", "1": "B", "2": "C"})
    oracle = getattr(transformers, head).from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_model(Checkpoint.open(tmp_path, task=task), torch.float32, "sdpa")
    assert type(ours).__name__ == head
    assert_outputs_equal(ours(token_ids(2, 9)), oracle(token_ids(2, 9)))


@torch.no_grad()
def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    _write(tmp_path, "NemotronForCausalLM", torch.bfloat16, tie_word_embeddings=True)
    oracle = transformers.NemotronForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_model(Checkpoint.open(tmp_path), torch.float32)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert_outputs_equal(ours(token_ids(2, 9)), oracle(token_ids(2, 9)))


def test_values_past_float16_are_refused(tmp_path: Path) -> None:
    model = transformers.NemotronForCausalLM._from_config(oracle_config(config_dict()), dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = -70000.0
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: found values up to 7.014e\+04"):
        load_model(Checkpoint.open(tmp_path), torch.float16)


def test_a_file_cut_after_opening_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "NemotronForCausalLM", torch.float32)
    checkpoint = Checkpoint.open(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="as when the checkpoint was opened"):
        load_model(checkpoint, torch.float32)


def test_the_file_is_copied_not_mapped(tmp_path: Path) -> None:
    """Writing to the loaded weights changes no file, and a file that changes later changes no weight."""
    _write(tmp_path, "NemotronForCausalLM", torch.float32)
    file = tmp_path / "model.safetensors"
    before = file.read_bytes()
    model = load_model(Checkpoint.open(tmp_path), torch.float32)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with file.open("r+b") as opened:
        opened.seek(-4096, 2)
        opened.write(bytes(4096))
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    file.write_bytes(before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert file.read_bytes() == before
