"""Messages, tools and documents: what is taken, what is refused, and that only plain values reach a template."""

from __future__ import annotations

import pytest
from nemotron_errors import RequestError
from nemotron_runtime.chat import plain
from nemotron_runtime.chat.messages import checked_documents, checked_messages, checked_tools

USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        ("Hi", "str"),
        (None, "NoneType"),
        (["Hi"], r"messages\[0\].*a dict with role and content"),
        ([{"content": "x"}], r"role None.*system, user, assistant, tool"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content of type list"),
        ([{"role": "user", "content": object()}], "object"),
        ([USER, {"role": "system", "content": "x"}], r"messages\[1\].*system message after one of the user"),
        ([{"role": "tool", "content": "x"}], "tool's message after nothing"),
        ([USER, {"role": "tool", "content": "x"}], "tool's message after one of the user"),
        ([{"role": "system", "content": "x"}], "last message of the system"),
        ([USER, {"role": "assistant", "content": "x"}], "last message of the assistant.*add_generation_prompt=False"),
        ([USER, {"role": "assistant", "tool_calls": "f()"}], "tool_calls"),
        ([USER, {"role": "assistant", "content": None}], "no content"),
    ],
)
def test_messages_that_are_refused(messages, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        checked_messages(messages)


def test_messages_that_are_taken() -> None:
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}]
    assert checked_messages(messages, answered=False)[1] == {
        "role": "assistant", "content": "", "tool_calls": [{"name": "f"}]
    }  # fmt: skip
    assert messages[1]["content"] is None, "what was given stays as it was"


@pytest.mark.parametrize("value", ["x", {"a": 1}, 3])
def test_tools_and_context_are_lists(value) -> None:
    for check in (checked_tools, checked_documents):
        with pytest.raises(RequestError, match="a list of"):
            check(value)
    with pytest.raises(RequestError, match=r"context\[0\].*text None"):
        checked_documents([{"title": "x"}])


def test_only_plain_values_reach_a_template() -> None:
    class Text(str):
        secret = "x"

    copy = plain({"a": [Text("t"), (1, True, None, 0.5)]}, "x")
    assert copy == {"a": ["t", [1, True, None, 0.5]]}
    assert type(copy["a"][0]) is str
    nested: list = []
    nested.append(nested)
    with pytest.raises(RequestError, match="deep nesting"):
        plain(nested, "x")
