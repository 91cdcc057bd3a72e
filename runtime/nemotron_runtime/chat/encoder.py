"""Encodes what a chat template wrote: its own control tokens as tokens, those in messages as text."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_runtime.text.tokenizer import Tokenizer

__all__ = ["TemplateEncoder"]

_MARKUP_PIECE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


class TemplateEncoder(ABC):
    """What a tokenizer must do for chat, in addition to encoding texts.

    Args:
        folder: the tokenizer's folder.
        tokenizer: the tokenizer that was read from it.

    Attributes:
        whole_tokens: strings that stand for one token where a template writes them, and their ids.
    """

    whole_tokens: dict[str, int]

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @staticmethod
    def from_directory(folder: Path, tokenizer: Tokenizer) -> TemplateEncoder:
        """The encoder of a folder that ``tokenizer`` was read from."""
        if (folder / "tokenizer.json").is_file():
            return _JsonEncoder(folder / "tokenizer.json", tokenizer)
        return _SentencePieceEncoder(folder / "tokenizer.model", tokenizer)

    def template(self, text: str, *, follows: bool = False) -> list[int]:
        """Token ids of text that a template wrote; nothing is added.

        Args:
            text: the text.
            follows: whether other text goes before it.

        Raises:
            TokenizerError: a text with lone surrogates.
        """
        return _following(self._template, text) if follows else self._template(text)

    def as_text(self, token: str, *, follows: bool = False) -> list[int]:
        """Token ids of one of :attr:`whole_tokens` as the letters that it is made of."""
        ids = _following(self._as_text, token) if follows else self._as_text(token)
        if self.whole_tokens.get(token) in ids:
            # some tokenizers find the whole even so; cut after the first letter it is no longer found
            ids = self.template(token[:1], follows=follows) + self.template(token[1:], follows=True)
        return ids

    @abstractmethod
    def _template(self, text: str) -> list[int]: ...

    @abstractmethod
    def _as_text(self, text: str) -> list[int]: ...


class _JsonEncoder(TemplateEncoder):
    """tokenizer.json: its added tokens are found in any text, so letters need a tokenizer without them."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._path = path
        self.whole_tokens = {
            piece["content"]: int(piece["id"]) for piece in json.loads(path.read_text("utf-8")).get("added_tokens", ())
        }

    @cached_property
    def _letters(self) -> Any:
        import tokenizers

        document = json.loads(self._path.read_text("utf-8"))
        made = tokenizers.Tokenizer.from_str(json.dumps({**document, "added_tokens": []}))
        made.no_truncation()
        made.no_padding()
        return made

    def _template(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _as_text(self, text: str) -> list[int]:
        return list(self._letters.encode(text, add_special_tokens=False).ids)


class _SentencePieceEncoder(TemplateEncoder):
    """tokenizer.model: control pieces are never found in a text, user-defined ones always."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        import sentencepiece

        super().__init__(tokenizer)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.whole_tokens = {}
        for token in range(tokenizer.vocab_size):
            piece = processor.IdToPiece(token)
            markup = _MARKUP_PIECE.fullmatch(piece) and not processor.IsByte(token)
            if token in tokenizer.special_ids or (markup and token in processor.EncodeAsIds(piece)):
                self.whole_tokens[piece] = token
        self._whole = re.compile("(" + _any_of(self.whole_tokens) + ")")

    def _template(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(self._whole.split(text)):
            if number % 2:
                ids.append(self.whole_tokens[piece])
            elif piece:
                ids += _following(self._as_text, piece) if ids else self._as_text(piece)
        return ids

    def _as_text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def _following(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Ids of a text that follows other text: without the space that SentencePiece puts before a text's start."""
    newline, ids = encode("\n"), encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(text)


def _any_of(pieces: dict[str, int]) -> str:
    # a longer token goes before one that it contains; (?!) matches nothing
    return "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True)) or "(?!)"
