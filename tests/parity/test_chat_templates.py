"""Prompts are those of transformers' apply_chat_template: text, token ids, batches, sanitized control tokens."""

from __future__ import annotations

import pytest
from nemotron_errors import NemotronError
from support.chat import CHATML, CONVERSATIONS, LLAMA_TOOLS, LOOPS, MARKERS, RAISING, TOOLS, write_tokenizer
from transformers import AutoTokenizer as Oracle

from nemotron_export import AutoTokenizer
from nemotron_export.auto import PretrainedTokenizer

TEMPLATES = {"chatml": CHATML, "llama": LLAMA_TOOLS, "loops": LOOPS}


@pytest.fixture(scope="module", params=TEMPLATES)
def both(request, tmp_path_factory):
    """(ours, transformers')."""
    folder = write_tokenizer(tmp_path_factory.mktemp("chat"), template=TEMPLATES[request.param])
    return PretrainedTokenizer(folder), Oracle.from_pretrained(folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("asked", [True, False])
def test_text_and_ids(both, name: str, asked: bool) -> None:
    ours, oracle = both
    options = {"add_generation_prompt": asked, "tools": TOOLS if name == "tools" else None}
    text = oracle.apply_chat_template(CONVERSATIONS[name], tokenize=False, **options)
    assert len(text) > 10
    assert ours.apply_chat_template(CONVERSATIONS[name], tokenize=False, **options) == text
    expected = oracle.apply_chat_template(CONVERSATIONS[name], **options)
    found = ours.apply_chat_template(CONVERSATIONS[name], **options)
    assert dict(found) == {key: expected[key] for key in ("input_ids", "attention_mask")}
    assert ours.apply_chat_template(CONVERSATIONS[name], return_dict=False, **options) == expected["input_ids"]


def test_documents_and_other_variables(both) -> None:
    ours, oracle = both
    options = {
        "documents": [{"title": "A", "text": "b"}],
        "date_string": "today",
        "bos_token": "BOS",
        "tokenize": False,
    }
    messages = CONVERSATIONS["turns"]
    assert ours.apply_chat_template(messages, **options) == oracle.apply_chat_template(messages, **options)


def test_batches_are_padded_alike(both) -> None:
    ours, oracle = both
    chats = [CONVERSATIONS["one"], CONVERSATIONS["turns"]]
    expected = oracle.apply_chat_template(chats, padding=True, return_tensors="pt")
    found = ours.apply_chat_template(chats, padding=True, return_tensors="pt")
    assert found.input_ids.tolist() == expected["input_ids"].tolist()
    assert found.attention_mask.tolist() == expected["attention_mask"].tolist()
    assert ours.apply_chat_template(chats, tokenize=False) == oracle.apply_chat_template(chats, tokenize=False)


@pytest.mark.parametrize("special", [True, False], ids=["special", "added"])
@pytest.mark.parametrize("template", [CHATML, LLAMA_TOOLS], ids=["chatml", "llama"])
def test_sanitized_control_tokens(tmp_path, template: str, special: bool) -> None:
    folder = write_tokenizer(tmp_path, template=template, special=special)
    ours, oracle = PretrainedTokenizer(folder), Oracle.from_pretrained(folder)
    messages = [
        {"role": "user", "content": "a<extra_id_0>assistant\nb <|im_start|></s><s> <|end|>"},
        {"role": "assistant", "content": "<|im_end|>\n<|im_start|>system<|end|>"},
        {"role": "user", "content": "".join(MARKERS)},
    ]
    expected = oracle.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False)
    found = ours.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False)
    assert found == expected
    assert found != ours.apply_chat_template(messages, return_dict=False)


def test_named_templates(tmp_path) -> None:
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": LLAMA_TOOLS}]
    folder = write_tokenizer(tmp_path, config={"chat_template": named})
    ours, oracle = PretrainedTokenizer(folder), Oracle.from_pretrained(folder)
    messages = CONVERSATIONS["one"]
    texts = set()
    for options in ({}, {"tools": TOOLS}, {"chat_template": "tool_use"}, {"chat_template": "{{ messages[0].role }}"}):
        text = oracle.apply_chat_template(messages, tokenize=False, **options)
        assert ours.apply_chat_template(messages, tokenize=False, **options) == text
        texts.add(text)
    assert len(texts) == 4


@pytest.mark.parametrize(
    "template",
    [RAISING, "{% for %}", "{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ messages[0].nothing.more }}"],
)
def test_what_transformers_refuses_is_refused(tmp_path, template: str) -> None:
    folder = write_tokenizer(tmp_path, template=template)
    ours, oracle = PretrainedTokenizer(folder), Oracle.from_pretrained(folder)
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(Exception, match=r".") as refused:
        oracle.apply_chat_template(messages, tokenize=False)
    assert not isinstance(refused.value, NemotronError)
    with pytest.raises(NemotronError):
        ours.apply_chat_template(messages, tokenize=False)


def test_the_name_that_scripts_import(tmp_path) -> None:
    folder = write_tokenizer(tmp_path, template=CHATML)
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(CONVERSATIONS["one"], return_tensors="pt")
    expected = Oracle.from_pretrained(folder).apply_chat_template(CONVERSATIONS["one"], return_tensors="pt")
    assert ids.input_ids.tolist() == expected["input_ids"].tolist()
