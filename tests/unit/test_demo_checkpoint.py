"""The demo checkpoint that the package carries: complete, tiny, odd where models are odd, and trained."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import sentencepiece
import tokenizers
import torch
from nemotron_runtime.text.tokenizer import Tokenizer

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model

DEMO = Path(str(files("nemotron_export") / "assets" / "demo"))
NAMES = {
    "config.json",
    "eval.txt",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "training.json",
}
SPECIALS = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3}
LINES = sorted({line for text in topics.values() for line in text.split("\n")})[::10]
# Python's releases word the topics differently: 66.6 was measured with 3.11, an untrained model has 4,096
PERPLEXITY_BOUND = 100.0


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint.open(DEMO)


@pytest.fixture(scope="module")
def processor():
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))


@pytest.fixture(scope="module")
def converted():
    return tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_complete():
    assert {path.name for path in DEMO.iterdir()} - {"README.md"} == NAMES
    assert all((DEMO / name).stat().st_size for name in NAMES)


def test_opens_as_one_small_bfloat16_checkpoint(checkpoint):
    assert checkpoint.dtype == checkpoint.config.dtype == "bfloat16"
    assert {entry.dtype for entry in checkpoint.tensors.values()} == {"BF16"}
    assert 3_000_000 <= checkpoint.num_parameters <= 5_000_000
    assert checkpoint.num_bytes == 2 * checkpoint.num_parameters
    assert [shard.path.name for shard in checkpoint.shards] == ["model.safetensors"]
    assert not checkpoint.tied


def test_its_shape_tells_apart_what_is_easily_confused(checkpoint):
    config = checkpoint.config
    assert config.head_dim != config.hidden_size // config.num_attention_heads
    assert 1 < config.num_key_value_heads < config.num_attention_heads
    assert 0 < config.rotary_dim < config.head_dim


def test_special_ids_agree_everywhere(checkpoint, processor, converted):
    config = checkpoint.config
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    assert {name: getattr(config, name) for name in ids} == ids
    assert checkpoint.generation_config == ids
    assert {piece: converted.token_to_id(piece) for piece in SPECIALS} == SPECIALS
    assert {piece: processor.PieceToId(piece) for piece in SPECIALS} == SPECIALS
    assert (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2, 3)
    named = json.loads((DEMO / "tokenizer_config.json").read_text())
    assert [named[f"{name}_token"] for name in ("pad", "unk", "bos", "eos")] == list(SPECIALS)


def test_both_tokenizer_files_are_one_tokenizer(checkpoint, processor, converted):
    assert processor.GetPieceSize() == converted.get_vocab_size() == checkpoint.config.vocab_size
    pieces = [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]
    assert pieces == [converted.id_to_token(i) for i in range(len(pieces))]
    assert len(LINES) > 300
    for line in LINES:
        ids = processor.EncodeAsIds(line)
        assert converted.encode(line, add_special_tokens=False).ids == ids, line
        assert converted.decode(ids) == processor.DecodeIds(ids) == line
    assert converted.encode(LINES[-1]).ids == [2, *processor.EncodeAsIds(LINES[-1])]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is no faster with more
    yield
    torch.set_num_threads(before)


def test_it_has_learnt_its_language(checkpoint, one_thread):
    model = load_model(checkpoint, torch.float32)
    tokenizer = Tokenizer.from_directory(DEMO)
    loss, count = 0.0, 0
    for name in ("exceptions", "slicings", "operator-summary"):
        row_BS = torch.tensor([tokenizer.encode(topics[name])[:700]])
        with torch.no_grad():
            mean = float(model(row_BS, labels=row_BS, use_cache=False).loss)
        targets = row_BS.shape[1] - 1
        loss, count = loss + mean * targets, count + targets
    assert count > 1000
    assert math.exp(loss / count) < PERPLEXITY_BOUND


def test_training_record(checkpoint):
    record = json.loads((DEMO / "training.json").read_text())
    assert record["parameters"] == checkpoint.num_parameters
    assert record["train_tokens"] > 1_000_000
    assert record["heldout_tokens"] > 10_000
    assert len(bytes.fromhex(record["train_sha256"])) == 32
    assert 0 < record["best_step"] <= record["arguments"]["steps"]
    assert {"seed", "peak_lr", "weight_decay", "device"} <= set(record["arguments"])
    assert {"python", "torch", "numpy"} == set(record["versions"])
    assert record["seconds"] > 0
    assert record["hardware"]
    for dtype in ("float32", "bfloat16"):
        loss = record["heldout_loss_nats"][dtype]
        assert record["heldout_perplexity"][dtype] == pytest.approx(math.exp(loss))
        assert loss < math.log(40)
