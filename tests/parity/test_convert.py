"""`convert`: what it writes is what transformers casts, and what this project and transformers load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nemotron_errors import BundleError, CheckpointError, RequestError
from nemotron_formats.dtypes import RUN_DTYPES
from safetensors.torch import load_file
from support.checkpoints import run_blocked, write_checkpoint
from transformers import NemotronForCausalLM

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.convert import convert


@pytest.mark.parametrize("dtype", RUN_DTYPES)
def test_every_tensor_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    stored = torch.float32 if dtype != "float32" else torch.bfloat16
    oracle = write_checkpoint(tmp_path / "checkpoint", stored, vocab_size=40_000, num_hidden_layers=1)
    path = convert(tmp_path / "checkpoint", tmp_path / "converted", dtype)
    opened = Checkpoint.open(path)
    assert opened.dtype == dtype
    assert opened.config.dtype == dtype
    wanted = {name: value.to(getattr(torch, dtype)) for name, value in oracle.state_dict().items()}
    found = load_file(path / "model.safetensors")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    # a block is smaller than the embedding, so that the loop over blocks is what was tested
    assert found["model.embed_tokens.weight"].nbytes > 4 << 20
    assert {file.name for file in path.iterdir()} >= {"tokenizer.json", "LICENSE", "generation_config.json"}
    loaded = NemotronForCausalLM.from_pretrained(path, dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)


def test_shards_and_their_index_stay(tmp_path: Path) -> None:
    oracle = write_checkpoint(tmp_path / "whole", torch.float32)
    oracle.to(torch.bfloat16).save_pretrained(tmp_path / "checkpoint", max_shard_size="200KB")
    path = convert(tmp_path / "checkpoint", tmp_path / "converted", "float32")
    before, after = (Checkpoint.open(folder) for folder in (tmp_path / "checkpoint", path))
    assert len(after.shards) == len(before.shards) > 2
    assert {name: entry.file for name, entry in after.tensors.items()} == {
        name: entry.file for name, entry in before.tensors.items()
    }
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == after.num_bytes == 2 * before.num_bytes


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    oracle = write_checkpoint(tmp_path / "checkpoint", torch.float32)
    with pytest.raises(RequestError, match="'int8'"):
        convert(tmp_path / "checkpoint", tmp_path / "out", "int8")
    with pytest.raises(RequestError, match="a checkpoint in float32"):
        convert(tmp_path / "checkpoint", tmp_path / "out", "float32")
    with pytest.raises(BundleError, match="a folder that is no bundle"):
        convert(tmp_path / "checkpoint", tmp_path / "checkpoint", "bfloat16")
    with torch.no_grad():
        oracle.model.layers[1].mlp.up_proj.weight[3, 5] = 70000.0
    oracle.save_pretrained(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        convert(tmp_path / "large", tmp_path / "out", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "large"]


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    done = run_blocked("convert", tmp_path, "-o", tmp_path / "out", "--dtype", "float32")
    assert done.returncode == 3
    assert "pip install" in done.stderr
