"""Checkpoints that transformers writes open here, and what is written here transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nemotron_errors import CheckpointError, RequestError

from nemotron_export.checkpoint import TASKS, Checkpoint, scan
from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.config.config import NemotronConfig

# head_dim is not hidden_size / heads, fewer KV heads, odd sizes
ODD: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 20, "num_labels": 3,
}  # fmt: skip
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def their_model(task: str = "causal-lm", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, TASKS[task][1])(transformers.NemotronConfig(**{**ODD, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.to(dtype).eval()


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    entry = checkpoint.tensors[name]
    data = bytearray((checkpoint.directory / entry.file).read_bytes()[entry.offset : entry.offset + entry.length])
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).view(entry.shape)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_saves_opens(tmp_path: Path, max_shard_size: str, dtype: torch.dtype, tied: bool) -> None:
    model = their_model(dtype=dtype, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    checkpoint = Checkpoint.open(tmp_path)
    theirs = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    assert list(checkpoint.tensors) == list(theirs)
    assert all(torch.equal(read(checkpoint, name), value) for name, value in theirs.items())
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (len(checkpoint.shards) > 1) is (max_shard_size == "20KB")
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    assert checkpoint.tied is tied
    assert scan(checkpoint).bytes == sum(shard.size for shard in checkpoint.shards)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("biased", [False, True])
def test_every_class_opens(tmp_path: Path, task: str, biased: bool) -> None:
    model = their_model(task, attention_bias=biased, mlp_bias=biased)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path, task=task)
    assert {name: entry.shape for name, entry in checkpoint.tensors.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    model = their_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"\.bin.*safe_serialization=True"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("max_shard_size", ["5GB", 20_000])
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_what_is_saved_here(
    tmp_path: Path, task: str, max_shard_size: int | str, tied: bool
) -> None:
    model = their_model(task, tie_word_embeddings=tied)
    config = NemotronConfig.from_dict(model.config.to_dict())
    save_checkpoint(tmp_path, config, model.state_dict(), task=task, max_shard_size=max_shard_size)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.architectures == [TASKS[task][1]]
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    checkpoint = Checkpoint.open(tmp_path, task=task)
    assert checkpoint.tied is (tied and task == "causal-lm")


def test_saving_twice_leaves_no_old_file(tmp_path: Path) -> None:
    model = their_model()
    config = NemotronConfig.from_dict(model.config.to_dict())
    save_checkpoint(tmp_path, config, model.state_dict(), max_shard_size=20_000)
    save_checkpoint(tmp_path, config, model.state_dict(), generation_config={"eos_token_id": [3, 5]})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]
    assert Checkpoint.open(tmp_path).generation_config == {"eos_token_id": [3, 5]}


def test_views_and_transposed_tensors_are_saved_as_they_read(tmp_path: Path) -> None:
    state = their_model().state_dict()
    name, view = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    state[name] = state[name].t().contiguous().t()
    state[view] = torch.cat([state[view], state[view]])[:80]
    config = NemotronConfig.from_dict(their_model().config.to_dict())
    checkpoint = Checkpoint.open(save_checkpoint(tmp_path, config, state))
    assert torch.equal(read(checkpoint, name), state[name])
    assert torch.equal(read(checkpoint, view), state[view])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.pop("model.norm.bias"), "no model.norm.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "the unexpected 'extra'"),
        (lambda s: s.update({"model.norm.bias": torch.zeros(3)}), r"model.norm.bias of shape \[3\] instead of \[48\]"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(97, 48)}), "matrices of bfloat16, float32"),
        (lambda s: s.update({k: v.double() for k, v in s.items()}), "matrices of float64"),
    ],
)
def test_a_state_that_does_not_fit_is_not_saved(tmp_path: Path, change: Any, found: str) -> None:
    model = their_model()
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=found):
        save_checkpoint(tmp_path / "out", NemotronConfig.from_dict(model.config.to_dict()), state)
    assert not (tmp_path / "out").exists()


def test_an_untied_head_is_not_saved_as_tied(tmp_path: Path) -> None:
    model = their_model()
    config = NemotronConfig.from_dict({**model.config.to_dict(), "tie_word_embeddings": True})
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        save_checkpoint(tmp_path, config, model.state_dict())


def test_a_shard_size_that_makes_no_sense(tmp_path: Path) -> None:
    model = their_model()
    config = NemotronConfig.from_dict(model.config.to_dict())
    with pytest.raises(RequestError, match="max_shard_size"):
        save_checkpoint(tmp_path, config, model.state_dict(), max_shard_size="five")


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron_export.checkpoint import save

    model = their_model()
    config = NemotronConfig.from_dict(model.config.to_dict())
    save_checkpoint(tmp_path, config, model.state_dict())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, state: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "_write_shard", full)
    with pytest.raises(save.ResourceError, match="bytes free"):
        save_checkpoint(tmp_path, config, their_model().state_dict(), max_shard_size=20_000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
