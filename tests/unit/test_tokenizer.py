"""Both kinds of tokenizer, and that streams add up to the text without ever showing half a character."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from nemotron_errors import TokenizerError
from nemotron_runtime.text.tokenizer import Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import nemotron_export

TEXTS = [
    "The river had been rising since the morning.",
    "  two leading spaces, and\n\na blank line\t.",
    "naïve café, 中文字符 and 😀👩‍👩‍👧 emoji",
    "x",
    " ",
    "",
    "ends with space ",
    "if a < b:\n    return {'k': [1, 2]}",
]
CORPUS = ["The river had been rising since the morning, and the fields were under water.", "if a < b: return {}"] * 20

DEMO = Path(nemotron_export.__file__).parent / "assets" / "demo"


def sentencepiece_folder(folder, **options):
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, bos_id=2, eos_id=3, pad_id=0, unk_id=1, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        user_defined_symbols=["<extra_id_0>", "<extra_id_1>"], **options,
    )  # fmt: skip
    return folder


def byte_fallback_json(folder):
    """What a converted SentencePiece model looks like."""
    specials = ["<pad>", "<unk>", "<s>", "</s>"]
    pieces = [
        *specials,
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyzTI.,",
        "▁t",
        "he",
        "▁the",
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(specials)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    made.enable_truncation(4)
    made.enable_padding()
    made.save(str(folder / "tokenizer.json"))
    return folder


def byte_level_json(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<s>", *alphabet])}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    made.save(str(folder / "tokenizer.json"))
    return folder


MAKERS = {"sentencepiece": sentencepiece_folder, "byte fallback": byte_fallback_json, "byte level": byte_level_json}


@pytest.fixture(scope="module", params=list(MAKERS))
def tokenizer(request, tmp_path_factory):
    return Tokenizer.from_directory(MAKERS[request.param](tmp_path_factory.mktemp("tokenizer")))


def stream(tokenizer, ids, context=()):
    decoder = tokenizer.incremental(context)
    return [decoder.push(token) for token in ids] + [decoder.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_stream(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(isinstance(token, int) for token in ids)
    assert tokenizer.decode(ids) == text
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_stream_does_not_wait_for_the_end(tokenizer):
    pieces = stream(tokenizer, tokenizer.encode(TEXTS[2]))
    assert pieces[-1] == ""
    assert sum(bool(piece) for piece in pieces) > len(pieces) // 4


@pytest.mark.parametrize("seed", range(30))
def test_random_tokens_add_up_to_their_decoding(tokenizer, seed):
    ids = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, 80).tolist()
    # one broken byte spoils the ASCII bytes of its run in one of the libraries
    ids = [token for token in ids if (tokenizer.byte_of(token) or 0x80) >= 0x80]
    text = tokenizer.decode(ids)
    streamed = "".join(stream(tokenizer, ids))
    # libraries differ in how many U+FFFD stand for invalid bytes; all else is exact
    if "\N{REPLACEMENT CHARACTER}" in text:
        keep = "abcdefghijklmnopqrstuvwxyz"
        assert [c for c in streamed if c in keep] == [c for c in text if c in keep]
    else:
        assert streamed == text


def test_a_character_cut_off_by_the_end_becomes_a_replacement(tokenizer):
    ids = tokenizer.encode("ab😀", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids[:-1])).startswith("ab\N{REPLACEMENT CHARACTER}")


def test_a_broken_byte_run_keeps_the_whole_characters_before_it(tokenizer):
    ids = tokenizer.encode("中", add_special_tokens=False)
    text = "".join(stream(tokenizer, [*ids, ids[-1], *tokenizer.encode("x", add_special_tokens=False)]))
    assert text.lstrip().startswith("中\N{REPLACEMENT CHARACTER}")
    assert text.endswith("x")


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_adds_what_it_adds_to_the_prompts_text(tokenizer, text):
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        answer = "".join(stream(tokenizer, ids[cut:], ids[:cut]))
        # a character cut in two comes whole with the answer
        assert "".join(stream(tokenizer, ids[:cut])[:-1]) + answer == text
        prompt = tokenizer.decode(ids[:cut])
        assert "\N{REPLACEMENT CHARACTER}" in prompt or prompt + answer == text
        assert stream(tokenizer, [], ids[:cut]) == [""]


@pytest.mark.parametrize("prompt", ["ab\N{REPLACEMENT CHARACTER}", "ab"])
def test_what_the_prompt_breaks_off_is_not_shown_again(tokenizer, prompt):
    cut = tokenizer.encode("😀")[:-1] if prompt == "ab" else []
    before = [*tokenizer.encode(prompt), *cut[-2:]]
    assert "".join(stream(tokenizer, tokenizer.encode("x", add_special_tokens=False), before)).lstrip() == "x"


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def demo(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    shutil.copy(DEMO / request.param, folder)
    return Tokenizer.from_directory(folder)


class TestDemoTokenizer:
    """The demo's tokenizer.json and tokenizer.model drop the space in front of a text's first word."""

    PROMPT = "The function returns a list of"
    WORDS = " strings, and 2 numbers.\n\n    Raises:  café 😀"

    def test_prompt_and_answer_read_right(self, demo):
        prompt = demo.encode(self.PROMPT)
        answer = demo.encode(self.PROMPT + self.WORDS)[len(prompt) :]
        pieces = stream(demo, answer, prompt)
        assert "".join(pieces) == self.WORDS
        assert pieces[0].startswith(" ")
        assert demo.decode(answer) == self.WORDS[1:], "alone it has no space in front"

    def test_random_answers_add_up(self, demo):
        rng = np.random.default_rng(5)
        ordinary = [token for token in range(4, demo.vocab_size) if demo.byte_of(token) is None]
        for _ in range(50):
            prompt, answer = ([int(t) for t in rng.choice(ordinary, 20)] for _ in range(2))
            whole = demo.decode([2, *prompt, *answer, 3])
            assert demo.decode(prompt) + "".join(stream(demo, [*answer, 3], [2, *prompt])) == whole

    def test_after_special_tokens_alone_the_answer_is_a_texts_start(self, demo):
        answer = demo.encode("The answer", add_special_tokens=False)
        assert "".join(stream(demo, answer, [2])) == "The answer"


def test_special_tokens_have_no_text_unless_asked_for(tmp_path):
    tokenizer = Tokenizer.from_directory(byte_fallback_json(tmp_path))
    ids = [*tokenizer.encode("the"), 3]
    assert ids[0] == 2
    assert tokenizer.encode("the", add_special_tokens=False) == ids[1:-1]
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s> the</s>"
    assert "".join(stream(tokenizer, ids)) == "the"
    assert tokenizer.special_ids == {0, 1, 2, 3}


def test_stored_truncation_and_padding_are_not_applied(tmp_path):
    assert len(Tokenizer.from_directory(byte_fallback_json(tmp_path)).encode("the river is long")) > 8


def test_sentencepiece_specials_follow_tokenizer_config(tmp_path):
    plain = Tokenizer.from_directory(sentencepiece_folder(tmp_path))
    ids = plain.encode("The river", add_special_tokens=False)
    assert plain.encode("The river") == [2, *ids]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "add_eos_token": True}))
    assert Tokenizer.from_directory(tmp_path).encode("The river") == [*ids, 3]
    one_piece = plain.encode("<extra_id_1>", add_special_tokens=False)
    assert plain.decode(one_piece).strip() == "<extra_id_1>"
    assert {0, 1, 2, 3} <= plain.special_ids


def test_sentencepiece_equals_the_library(tmp_path):
    folder = sentencepiece_folder(tmp_path)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = Tokenizer.from_directory(folder)
    for text in TEXTS:
        assert tokenizer.encode(text, add_special_tokens=False) == oracle.encode(text)
    assert tokenizer.vocab_size == oracle.vocab_size()


def test_json_is_preferred_and_sentencepiece_used_without_it(tmp_path):
    sentencepiece_folder(tmp_path)
    assert Tokenizer.from_directory(tmp_path).vocab_size != 294
    byte_fallback_json(tmp_path)
    assert Tokenizer.from_directory(tmp_path).vocab_size == 294


def test_control_pieces_of_sentencepiece_have_their_text_where_asked_for(tmp_path):
    tokenizer = Tokenizer.from_directory(sentencepiece_folder(tmp_path, control_symbols=["<ctl>"]))
    ids = tokenizer.encode("if a < b")
    assert ids[0] == 2
    whole = [*ids, 3, 2, *ids[1:], 4, 1, *ids[1:]]
    text = "<s> if a < b</s><s> if a < b<ctl><unk> if a < b"
    assert tokenizer.decode(whole, skip_special_tokens=False) == text
    # as the library that reads tokenizer.model for transformers
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"})
    )
    oracle = pytest.importorskip("transformers").LlamaTokenizer.from_pretrained(tmp_path)
    for sample in (whole, ids, ids[1:], [0], [4, *ids], [*ids[1:], 4, *ids[1:]], [3], []):
        assert tokenizer.decode(sample, skip_special_tokens=False) == oracle.decode(sample)
        assert tokenizer.decode(sample) == oracle.decode(sample, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_control_pieces_take_nothing_from_the_text_between_them(tmp_path_factory, text):
    tokenizer = Tokenizer.from_directory(sentencepiece_folder(tmp_path_factory.mktemp("tokenizer")))
    ids = tokenizer.encode(text, add_special_tokens=False)
    inner = f" {text}" if ids else ""
    assert tokenizer.decode([2, *ids, 3], skip_special_tokens=False) == f"<s>{inner}</s>"
    assert tokenizer.decode([2, *ids, 3]) == text


def test_tokens_that_sentencepiece_does_not_hold_are_refused(tmp_path):
    sentencepiece_folder(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 5000}))
    with pytest.raises(TokenizerError, match=r"<tool>.*tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 3}))
    assert Tokenizer.from_directory(tmp_path).vocab_size > 300


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_without_a_piece(tokenizer, token):
    with pytest.raises(TokenizerError, match=str(token)):
        tokenizer.decode([token])
    assert stream(tokenizer, [token]) == ["", ""]


@pytest.mark.parametrize("text", [b"bytes", None, 3, "lone \ud800 surrogate"])
def test_no_text(tokenizer, text):
    with pytest.raises(TokenizerError):
        tokenizer.encode(text)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}"])
def test_broken_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert caught.value.where == str(tmp_path / name)


def test_no_files(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json or tokenizer\.model"):
        Tokenizer.from_directory(tmp_path)
