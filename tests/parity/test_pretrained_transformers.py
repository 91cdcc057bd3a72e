"""from_pretrained, save_pretrained and the tokenizer's calls against transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.models import config_dict, oracle_config, randomize, token_ids
from support.oracles import assert_outputs_equal

import nemotron_export
from nemotron_export import AutoModelForCausalLM, AutoTokenizer
from nemotron_export.model.load import MODEL_CLASSES

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"
TEXTS = ["Hello", "our solar system is", "", "naïve 😀 x = [1, 2]\n\tend"]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(str(DEMO)), transformers.AutoTokenizer.from_pretrained(str(DEMO))


@torch.no_grad()
@pytest.mark.parametrize("head", [cls.__name__ for cls in MODEL_CLASSES.values()])
def test_every_class_loads_and_saves(head: str, tmp_path: Path) -> None:
    values = config_dict(head_dim=32, pad_token_id=0, id2label={"0": "A", "1": "B", "2": "C"})
    written = randomize(getattr(transformers, head)._from_config(oracle_config(values), dtype=torch.bfloat16))
    written.save_pretrained(tmp_path / "theirs")
    ours = getattr(nemotron_export, head).from_pretrained(tmp_path / "theirs", dtype="float32")
    assert type(ours).__name__ == head
    assert not ours.training
    oracle = getattr(transformers, head).from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    assert_outputs_equal(ours(token_ids(2, 9)), oracle(token_ids(2, 9)))
    ours.save_pretrained(tmp_path / "ours", max_shard_size="40KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again = getattr(transformers, head).from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.float32
    assert again.state_dict().keys() == ours.state_dict().keys()
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))
    assert_outputs_equal(ours(token_ids(2, 9)), again(token_ids(2, 9)))


def test_tied_weights_and_generation_settings_are_kept(tmp_path: Path) -> None:
    values = config_dict(tie_word_embeddings=True)
    written = randomize(transformers.NemotronForCausalLM._from_config(oracle_config(values), dtype=torch.bfloat16))
    written.generation_config.eos_token_id = [7, 11]
    written.save_pretrained(tmp_path / "theirs")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.NemotronForCausalLM.from_pretrained(tmp_path / "ours")
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, written.lm_head.weight)
    assert ours.generation_config["eos_token_id"] == again.generation_config.eos_token_id == [7, 11]


@pytest.mark.parametrize("dtype", ["auto", torch.float32, "float16", "bfloat16", None], ids=str)
def test_dtypes(dtype: Any) -> None:
    given = {} if dtype is None else {"dtype": dtype}
    ours = AutoModelForCausalLM.from_pretrained(DEMO, **given)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(DEMO, **given)
    assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("implementation", [None, "eager", "sdpa"])
def test_attention_implementations(implementation: str | None) -> None:
    ours = AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation=implementation)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation=implementation)
    assert ours.model.attn_implementation == theirs.config._attn_implementation
    with torch.no_grad():
        assert torch.equal(ours(token_ids(1, 9)).logits, theirs(token_ids(1, 9)).logits)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_encode_and_decode(tokenizers: tuple[Any, Any], text: str, special: bool) -> None:
    ours, theirs = tokenizers
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode([*ids, 3], skip_special_tokens=True) == theirs.decode([*ids, 3], skip_special_tokens=True)
    assert dict(ours(text, add_special_tokens=special)) == dict(theirs(text, add_special_tokens=special))
    if ids:
        found = ours.encode(text, add_special_tokens=special, return_tensors="pt")
        expected = theirs.encode(text, add_special_tokens=special, return_tensors="pt")
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        for form in (found[0], found[0].numpy(), found, ids[0], found[0, 0], [ids, ids]):
            assert ours.decode(form) == theirs.decode(form)
        assert ours.batch_decode(found) == theirs.batch_decode(found)


@pytest.mark.parametrize("side", ["left", "right", None])
def test_padded_batches(tokenizers: tuple[Any, Any], side: str | None) -> None:
    ours, theirs = tokenizers
    assert ours.padding_side == theirs.padding_side
    found = ours(TEXTS, padding=True, padding_side=side, return_tensors="pt").to("cpu")
    expected = theirs(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    assert found.keys() == expected.keys()
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found["attention_mask"], expected["attention_mask"])
    assert dict(ours(TEXTS)) == dict(theirs(TEXTS))
    assert dict(ours(TEXTS, padding=True, padding_side=side)) == dict(theirs(TEXTS, padding=True, padding_side=side))
    assert ours.batch_decode(found.input_ids) == theirs.batch_decode(expected.input_ids)


def test_special_tokens(tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = tokenizers
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name) is not None
    assert len(ours) == len(theirs)


def test_a_padded_batch_generates_the_same(tokenizers: tuple[Any, Any]) -> None:
    ours, theirs = (
        package.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
        for package in (nemotron_export, transformers)
    )
    batch = tokenizers[0](["The function returns", "our solar system is not"], padding=True, return_tensors="pt")
    found = ours.generate(**batch, max_new_tokens=12)
    assert torch.equal(found, theirs.generate(**batch, max_new_tokens=12))
