"""Text to token ids and back: what every tokenizer does, and tokenizer.json by tokenizers."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron_errors import TokenizerError

from nemotron_runtime.text.detokenizer import IncrementalDecoder
from nemotron_runtime.text.encoding import Encoding

__all__ = ["Tokenizer", "byte_of_piece", "read_json_object"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer(ABC):
    """The tokenizer of a checkpoint or a bundle.

    Attributes:
        vocab_size: ids that have a piece are below it.
        special_ids: control tokens, which decoding leaves out.
    """

    vocab_size: int
    special_ids: frozenset[int]

    @staticmethod
    def from_directory(directory: str | Path) -> Tokenizer:
        """Reads tokenizer.json, or tokenizer.model where there is none.

        Raises:
            TokenizerError: neither is there, or the file is broken.
        """
        folder = Path(directory)
        if (folder / "tokenizer.json").is_file():
            return _JsonTokenizer(folder / "tokenizer.json")
        if (folder / "tokenizer.model").is_file():
            from nemotron_runtime.text.sentencepiece import SentencePieceTokenizer  # it imports this module

            return SentencePieceTokenizer(folder / "tokenizer.model")
        remedy = "copy the checkpoint's tokenizer files there"
        raise TokenizerError("neither", "tokenizer.json or tokenizer.model", remedy, where=str(folder))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: the text.
            add_special_tokens: add what the tokenizer puts around a text (mostly a begin-of-sequence token in front).

        Raises:
            TokenizerError: not a string, or one with lone surrogates.
        """
        _check_text(text)
        return self._encode(text, add_special_tokens)

    def encode_spans(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> Encoding:
        """Token ids of a text, or of two as one sequence, with the characters that each token stands for.

        Raises:
            TokenizerError: as :meth:`encode`.
        """
        for each in (text,) if pair is None else (text, pair):
            _check_text(each)
        return self._encode_spans(text, pair, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids.

        Args:
            ids: token ids.
            skip_special_tokens: leave control tokens out; otherwise they stand as their pieces, such as ``<s>``.

        Raises:
            TokenizerError: an id without a piece.
        """
        tokens = [int(token) for token in ids]
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                expected = f"ids from 0 to {self.vocab_size - 1}"
                raise TokenizerError(f"token id {token}", expected, "use the tokenizer of this model", where="ids")
        return self._decode([t for t in tokens if not (skip_special_tokens and t in self.special_ids)])

    def incremental(self, context: Sequence[int] = ()) -> IncrementalDecoder:
        """A decoder for the tokens of one stream; special tokens and ids without a piece have no text.

        Args:
            context: the tokens before the stream. SentencePiece drops the space in front of a text's first word, so
                an answer decoded without its prompt would lose one.
        """
        return IncrementalDecoder(self._decode, self.byte_of, self._is_silent, context)

    @abstractmethod
    def byte_of(self, token_id: int) -> int | None:
        """The byte that a byte-fallback piece stands for."""

    @abstractmethod
    def _encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    @abstractmethod
    def _encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def _is_silent(self, token_id: int) -> bool:
        return token_id in self.special_ids or not 0 <= token_id < self.vocab_size


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TokenizerError(type(text).__name__, "a string", "give text", where="text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate at character {error.start}"
        raise TokenizerError(found, "valid Unicode", "decode the text properly first", where="text") from error


class _JsonTokenizer(Tokenizer):
    """tokenizer.json; what goes around a text is its post-processor's business."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            text = path.read_text("utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            parsed = json.loads(text)
        except Exception as error:  # tokenizers raises nothing more precise
            remedy = "restore the file from the checkpoint"
            raise TokenizerError(f"a broken file ({error})", "a tokenizer.json", remedy, where=str(path)) from error
        # a stored truncation or padding belongs to training batches
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, piece in added.items() if piece.special)
        # ids may have holes, so the count is not the bound
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self._bytes = _has_byte_fallback(parsed.get("decoder"))

    def byte_of(self, token_id: int) -> int | None:
        piece = self._tokenizer.id_to_token(token_id) if self._bytes else None
        return byte_of_piece(piece) if piece else None

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding:
        found = self._tokenizer.encode(text, pair, add_special_tokens=add_special_tokens)
        return Encoding(tuple(found.ids), tuple(found.offsets), tuple(found.sequence_ids))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def byte_of_piece(piece: str) -> int | None:
    """The byte that a piece such as <0x0A> stands for."""
    match = _BYTE_PIECE.fullmatch(piece)
    return int(match[1], 16) if match else None


def _has_byte_fallback(decoder: object) -> bool:
    """Whether a tokenizer.json's decoder turns pieces such as <0x0A> into bytes."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteFallback" or any(map(_has_byte_fallback, decoder.get("decoders", ())))


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
