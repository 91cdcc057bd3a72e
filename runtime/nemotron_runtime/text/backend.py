"""What each kind of tokenizer file gives: encoding and decoding, without checks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

from nemotron_errors import TokenizerError

from nemotron_runtime.text.encoding import Encoding

__all__ = ["TokenizerBackend", "byte_of_piece", "read_json_object"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenizerBackend(Protocol):
    """One kind of file; :class:`~nemotron_runtime.text.tokenizer.Tokenizer` describes the attributes and methods."""

    vocab_size: int
    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding:
        """Token ids of a text or two, with their characters."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, all of which have a piece."""

    def byte_of(self, token_id: int) -> int | None:
        """The byte that a byte-fallback piece stands for."""


def byte_of_piece(piece: str) -> int | None:
    """The byte that a piece such as <0x0A> stands for."""
    match = _BYTE_PIECE.fullmatch(piece)
    return int(match[1], 16) if match else None


def read_json_object(path: Path) -> dict[str, Any]:
    """One of a tokenizer's small JSON files; empty where it is not there.

    Raises:
        TokenizerError: no JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"no JSON ({error})", "an object", "restore the file", where=str(path)) from error
    if not isinstance(value, dict):
        raise TokenizerError(type(value).__name__, "an object", "restore the file", where=str(path))
    return value
