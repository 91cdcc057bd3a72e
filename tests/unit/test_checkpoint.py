"""Good checkpoints open: what is found, in which order, at what cost."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from support.raw_checkpoints import (
    PUBLISHED,
    TINY,
    draw,
    tensors_of,
    write_checkpoint,
    write_index,
    write_shard,
    write_sparse,
)

from nemotron_export.checkpoint import TASKS, Checkpoint, CheckpointError, expected_tensors


def stored(checkpoint: Checkpoint, name: str) -> bytes:
    entry = checkpoint.tensors[name]
    data = (checkpoint.directory / entry.file).read_bytes()
    return data[entry.offset : entry.offset + entry.length]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_offsets_point_at_every_tensor(tmp_path: Path, shards: int, dtype: str) -> None:
    tensors = write_checkpoint(tmp_path, shards=shards, dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path)
    assert list(checkpoint.tensors) == list(expected_tensors(checkpoint.config))
    assert all(stored(checkpoint, name) == tensors[name][2] for name in tensors)
    assert checkpoint.dtype == {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    assert len(checkpoint.shards) == shards
    assert checkpoint.num_bytes == sum(len(data) for _, _, data in tensors.values())
    assert checkpoint.num_parameters * (4 if dtype == "F32" else 2) == checkpoint.num_bytes
    assert not checkpoint.tied


@pytest.mark.parametrize("task", TASKS)
def test_every_task_opens(tmp_path: Path, task: str) -> None:
    config = {**TINY, "architectures": [TASKS[task][1]], "id2label": {"0": "a", "1": "b", "2": "c"}}
    tensors = write_checkpoint(tmp_path, config, task=task)
    checkpoint = Checkpoint.open(tmp_path, task=task)
    assert set(checkpoint.tensors) == set(tensors)
    if task in ("sequence-classification", "token-classification"):
        assert checkpoint.tensors["score.weight"].shape == (3, TINY["hidden_size"])


@pytest.mark.parametrize("source", ["causal-lm", "question-answering", "token-classification"])
def test_the_backbone_alone_comes_from_any_class(tmp_path: Path, source: str) -> None:
    tensors = write_checkpoint(tmp_path, {**TINY, "architectures": [TASKS[source][1]]}, task=source)
    checkpoint = Checkpoint.open(tmp_path, task="feature-extraction")
    assert set(checkpoint.tensors) == set(expected_tensors(checkpoint.config, "feature-extraction"))
    prefix = TASKS[source][0]
    assert all(entry.name == prefix + name for name, entry in checkpoint.tensors.items())
    assert stored(checkpoint, "norm.bias") == tensors[f"{prefix}norm.bias"][2]


def test_biases_follow_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**TINY, "attention_bias": True, "mlp_bias": True})
    names = Checkpoint.open(tmp_path).tensors
    assert {"model.layers.1.self_attn.o_proj.bias", "model.layers.0.mlp.down_proj.bias"} <= set(names)


def test_tied_without_lm_head(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**TINY, "tie_word_embeddings": True})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tied
    assert "lm_head.weight" not in checkpoint.tensors


def test_tied_with_an_equal_lm_head(tmp_path: Path) -> None:
    config = {**TINY, "tie_word_embeddings": True}
    tensors = tensors_of(config)
    write_checkpoint(tmp_path, config, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, shards=2)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tied
    assert "lm_head.weight" not in checkpoint.tensors


def test_a_tied_causal_model_comes_from_the_bare_backbone(tmp_path: Path) -> None:
    config = {**TINY, "tie_word_embeddings": True, "architectures": ["NemotronModel"]}
    write_checkpoint(tmp_path, config, task="feature-extraction")
    assert Checkpoint.open(tmp_path).tensors["model.norm.weight"].name == "norm.weight"


def test_norms_may_be_fp32_and_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    norm = ("F32", (24,), draw((24,), "F32"))
    buffer = ("F32", (2,), draw((2,), "F32"))
    changed = {
        **tensors,
        "model.norm.weight": norm,
        "model.layers.0.self_attn.rotary_emb.inv_freq": buffer,
        "model.rotary_emb.inv_freq": buffer,
    }
    write_checkpoint(tmp_path, TINY, changed, shards=2)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.tensors["model.norm.weight"].dtype == "F32"
    assert not any("inv_freq" in name for name in checkpoint.tensors)


def test_an_index_of_the_single_file_is_no_contradiction(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    write_index(tmp_path, dict.fromkeys(tensors, "model.safetensors"))
    assert len(Checkpoint.open(tmp_path).shards) == 1


def test_links_to_files_elsewhere_are_followed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert Checkpoint.open(tmp_path / "snapshot").shards[0].size == os.path.getsize(
        tmp_path / "blobs/model.safetensors"
    )


def test_files_beside_the_weights_are_listed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE.txt",
        "NOTICE",
        "README.md",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 7]}')
    checkpoint = Checkpoint.open(tmp_path)
    assert [p.name for p in checkpoint.tokenizer_files] == [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    assert [p.name for p in checkpoint.license_files] == ["LICENSE.txt", "NOTICE"]
    assert checkpoint.generation_config == {"eos_token_id": [3, 7]}


def test_header_hash_covers_the_length_field(tmp_path: Path) -> None:
    import hashlib

    write_checkpoint(tmp_path)
    (shard,) = Checkpoint.open(tmp_path).shards
    data = shard.path.read_bytes()
    assert shard.header_bytes == 8 + struct.unpack("<Q", data[:8])[0]
    assert shard.header_sha256 == hashlib.sha256(data[: shard.header_bytes]).hexdigest()


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="causal-lm, feature-extraction"):
        Checkpoint.open(tmp_path, task="translation")


def test_every_finding_of_a_kind_is_in_one_error(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    write_checkpoint(tmp_path, TINY, {name: value for name, value in tensors.items() if "norm" not in name})
    with pytest.raises(CheckpointError, match=r"10 tensors missing: .* and 5 more"):
        Checkpoint.open(tmp_path)


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("model", "parameters", "bytes_allowed"),
    [("Minitron-4B", 4_190_000_000, 16 << 20), ("Nemotron-4-340B", 341_000_000_000, 16 << 20)],
)
def test_published_shapes_open_with_nothing_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, parameters: int, bytes_allowed: int
) -> None:
    from nemotron_export.checkpoint import safetensors_header

    num_bytes = write_sparse(tmp_path, PUBLISHED[model], shard_bytes=5_000_000_000)
    read = []
    exactly = safetensors_header._read_exactly

    def counted(handle: object, count: int, where: str) -> bytes:
        read.append(count)
        return exactly(handle, count, where)  # type: ignore[arg-type]

    monkeypatch.setattr(safetensors_header, "_read_exactly", counted)
    before = resident_bytes()
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.num_bytes == num_bytes
    assert checkpoint.num_parameters == pytest.approx(parameters, rel=2e-3)
    # All that was read of the weight files is their headers.
    assert sum(read) == sum(shard.header_bytes for shard in checkpoint.shards) < 1_000_000
    assert resident_bytes() - before < bytes_allowed


def test_a_shard_of_scalars_and_empty_tensors_is_well_formed(tmp_path: Path) -> None:
    from nemotron_export.checkpoint import read_header

    tensors = {"a": ("F32", (), draw((), "F32")), "b": ("F32", (0, 4), b""), "c": ("F32", (2,), draw((2,), "F32"))}
    write_shard(tmp_path / "x.safetensors", tensors)
    header = read_header(tmp_path / "x.safetensors")
    assert {name: entry.num_elements for name, entry in header.tensors.items()} == {"a": 1, "b": 0, "c": 2}
