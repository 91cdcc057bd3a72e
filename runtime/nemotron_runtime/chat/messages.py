"""Checks messages, tools and documents before a template sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_errors import RequestError

__all__ = ["checked_documents", "checked_messages", "checked_tools", "plain"]

_ROLES = ("system", "user", "assistant", "tool")
_MAX_DEPTH = 64


def checked_messages(messages: Any, *, answered: bool = True) -> list[dict[str, Any]]:
    """Messages as plain data, in an order that makes sense; keys whose value is None are left out.

    Args:
        messages: dicts with role (system, user, assistant or tool) and content (text); an assistant's content may be
            missing where it has tool_calls. Other keys go to the template as they are.
        answered: the assistant speaks next, so that the last message must not be its own.

    Raises:
        RequestError: naming the message.
    """
    if not _is_list(messages) or not len(messages):
        found = "no messages" if _is_list(messages) else type(messages).__name__
        raise RequestError(found, "a list of messages", 'give [{"role": "user", "content": …}]', where="messages")
    checked: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            expected = "a dict with role and content"
            raise RequestError(type(message).__name__, expected, "correct it", where=where)
        copy = {key: value for key, value in plain(message, where).items() if value is not None}
        role = copy.get("role")
        if role not in _ROLES:
            raise RequestError(f"role {role!r}", f"one of {', '.join(_ROLES)}", "correct it", where=where)
        _check_content(copy, where)
        _check_order(role, checked[-1]["role"] if checked else None, where)
        checked.append(copy)
    if answered and checked[-1]["role"] not in ("user", "tool"):
        found = f"a last message of the {checked[-1]['role']}"
        remedy = "add the user's message, or pass add_generation_prompt=False"
        raise RequestError(found, "one of the user or of a tool, to answer", remedy, where="messages")
    return checked


def checked_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as JSON schemas, or None.

    Raises:
        RequestError: no list of dicts.
    """
    return _checked_dicts(tools, "tools", "JSON schemas of functions") or None


def checked_documents(context: Any) -> list[dict[str, Any]] | None:
    """Documents as {"title", "text"}, or None; a string is a text without a title.

    Raises:
        RequestError: neither strings nor dicts with a text.
    """
    if _is_list(context):
        context = [{"title": "", "text": item} if isinstance(item, str) else item for item in context]
    documents = _checked_dicts(context, "context", "texts, or dicts with title and text") or None
    for number, document in enumerate(documents or ()):
        if not isinstance(document.get("text"), str):
            found = f"text {document.get('text')!r}"
            raise RequestError(found, "a string", "correct it", where=f"context[{number}]")
    return documents


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of JSON's types alone, so that a template reaches no method of anything else.

    Raises:
        RequestError: another type, or deep nesting.
    """
    if depth > _MAX_DEPTH:
        raise RequestError("deep nesting", f"at most {_MAX_DEPTH} levels", "flatten it", where=where)
    if value is None or isinstance(value, bool):
        return value
    # a subclass may carry methods of its own
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    expected = "text, numbers, booleans, lists and dicts"
    raise RequestError(type(value).__name__, expected, "convert it", where=where)


def _check_content(message: dict[str, Any], where: str) -> None:
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise RequestError(f"tool_calls {calls!r}", "a list of dicts", "correct it", where=where)
    content = message.get("content")
    if content is None and message["role"] == "assistant" and calls:
        message["content"] = ""
    elif not isinstance(content, str):
        found = "no content" if content is None else f"content of type {type(content).__name__}"
        raise RequestError(found, "text", "give content as one string", where=where)


def _check_order(role: str, before: str | None, where: str) -> None:
    if role == "system" and before is not None:
        raise RequestError(f"a system message after one of the {before}", "it as the first", "move it", where=where)
    if role == "tool" and before not in ("assistant", "tool"):
        found = f"a tool's message after {f'one of the {before}' if before else 'nothing'}"
        raise RequestError(found, "it after the assistant's call", "add the call before it", where=where)


def _checked_dicts(value: Any, where: str, expected: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not _is_list(value):
        raise RequestError(type(value).__name__, f"a list of {expected}", "give a list", where=where)
    for number, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RequestError(type(item).__name__, expected, "correct it", where=f"{where}[{number}]")
    return [plain(item, f"{where}[{number}]") for number, item in enumerate(value)]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
