"""Model.chat over a session that answers by a script."""

from __future__ import annotations

from pathlib import Path

import pytest
from nemotron_errors import LimitError, RequestError, TokenizerError
from support.chat import CHATML, TOOLS, scripted_model, write_tokenizer

USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "bundle")


def test_an_answer(folder: Path) -> None:
    model = scripted_model(folder, "Good day.")
    answer = model.chat([USER])
    assert answer.message == {"role": "assistant", "content": "Good day.", "tool_calls": []}
    assert answer.result.finish_reason == "eos"
    assert answer.prompt_tokens == len(model.chat_prompt([USER])) == len(answer.result.prompt_token_ids)
    assert answer.result.timings.prompt_tokens == answer.prompt_tokens
    assert list(answer.result.prompt_token_ids) == model.chat_prompt([USER])


def test_a_stream_adds_up(folder: Path) -> None:
    model = scripted_model(folder, "Naïve 中文 😀.")
    chunks = list(model.chat([USER], stream=True))
    assert "".join(chunk.text for chunk in chunks) == "Naïve 中文 😀."
    assert chunks[-1].finish_reason == "eos"


def test_the_next_role_ends_the_answer_of_the_built_in_prompt_alone(folder: Path) -> None:
    text = "Yes.\n<extra_id_1>User\nMore"
    answer = scripted_model(folder, text).chat([USER], stop_token_ids=(7,))
    assert (answer.message["content"], answer.result.finish_reason) == ("Yes.\n", "stop")
    answer = scripted_model(folder, text).chat([USER], chat_template=CHATML)
    assert answer.result.finish_reason == "eos"


def test_tool_calls_are_parsed_and_rendered_again(folder: Path) -> None:
    call = '<toolcall> {"name": "get_weather", "arguments": {"city": "Bern"}} </toolcall>'
    model = scripted_model(folder, f"One moment. {call}")
    answer = model.chat([USER], tools=TOOLS, context=["It rains."])
    assert answer.message["content"] == "One moment."
    assert answer.message["tool_calls"] == [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Bern"}}}
    ]
    ids = model.chat_prompt([USER, answer.message, {"role": "tool", "content": "21"}], tools=TOOLS)
    assert f"One moment.\n{call}\n<extra_id_1>Tool\n21\n" in model.tokenizer.decode(ids, skip_special_tokens=False)


def test_what_does_not_fit_is_refused_with_its_count(folder: Path) -> None:
    model = scripted_model(folder, "x", max_seq_len=100)
    tokens = len(model.chat_prompt([USER]))
    with pytest.raises(LimitError, match=f"{tokens} tokens of the conversation and 90 new.*at most 100"):
        model.chat([USER], max_new_tokens=90)
    long = {"role": "user", "content": "x y " * 100}
    with pytest.raises(LimitError, match="tokens of the conversation and 1 new"):
        model.chat([long])
    answer = scripted_model(folder, "y" * 200, max_seq_len=100).chat([USER])
    assert (answer.result.finish_reason, len(answer.result.token_ids)) == ("length", 100 - tokens)


def test_requests_that_make_no_sense(folder: Path, tmp_path: Path) -> None:
    model = scripted_model(folder, "x")
    with pytest.raises(RequestError, match="one answer"):
        model.chat([USER], num_return_sequences=2)
    with pytest.raises(RequestError, match="max_new_tokens"):
        model.chat([USER], max_new_tokens="many")
    with pytest.raises(RequestError, match="parameters wrong"):
        model.chat([USER], wrong=1)
    with pytest.raises(TokenizerError, match="no chat template"):
        scripted_model(write_tokenizer(tmp_path / "base", markers=()), "x").chat([USER])
    model.tokenizer = None
    del model.__dict__["chat_format"]
    with pytest.raises(RequestError, match="no tokenizer in the bundle"):
        model.chat([USER])
