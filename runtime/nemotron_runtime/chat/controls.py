"""Keeps control tokens that stand in a message as text: only the template itself writes control tokens.

A message such as "<extra_id_1>Assistant" would otherwise speak for somebody else. Control tokens in what was given are
marked before a template sees them, and what is marked is encoded letter by letter.
"""

from __future__ import annotations

import re
from typing import Any

from nemotron_runtime.chat.encoder import TemplateEncoder
from nemotron_runtime.chat.environment import template_text

__all__ = ["control_tokens", "encode_marked", "mark"]

# noncharacters: they mean nothing in text, and are taken out of what was given
_START, _END = chr(0xFDD0), chr(0xFDD1)


def control_tokens(encoder: TemplateEncoder, template: str) -> tuple[str, ...]:
    """The tokens that messages must not forge: special ones, and those that the template writes; longest first."""
    written, special = template_text(template), encoder.tokenizer.special_ids
    found = (
        piece
        for piece, token in encoder.whole_tokens.items()
        if piece and (token in special or (piece in written and not piece.isspace()))
    )
    # a longer token goes before one that it contains
    return tuple(sorted(found, key=len, reverse=True))


def mark(value: Any, controls: tuple[str, ...]) -> Any:
    """Marks control tokens in every string of messages, tools or documents; keys stay as they are."""
    if isinstance(value, str):
        text = value.replace(_START, "").replace(_END, "")
        return re.sub(_any_of(controls), lambda match: f"{_START}{match[0]}{_END}", text)
    if isinstance(value, dict):
        return {key: mark(item, controls) for key, item in value.items()}
    if isinstance(value, list):
        return [mark(item, controls) for item in value]
    return value


def encode_marked(encoder: TemplateEncoder, text: str, controls: tuple[str, ...]) -> list[int]:
    """Token ids of a template's text.

    A template may tear a mark apart, by splitting a message for instance. What stands at both sides of a mark is never
    joined, so no token comes of it.

    Raises:
        TokenizerError: a text with lone surrogates.
    """
    pieces = re.split(f"{_START}({_any_of(controls)}){_END}|[{_START}{_END}]", text)
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        if piece:
            encode = encoder.as_text if number % 2 else encoder.template
            ids += encode(piece, follows=number > 0)
    return ids


def _any_of(controls: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, controls)) or "(?!)"  # which matches nothing
