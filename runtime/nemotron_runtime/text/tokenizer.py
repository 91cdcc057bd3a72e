"""Text to token ids and back, by the tokenizer file of a checkpoint or a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron_errors import TokenizerError

from nemotron_runtime.text.backend import TokenizerBackend
from nemotron_runtime.text.detokenizer import IncrementalDecoder
from nemotron_runtime.text.encoding import Encoding
from nemotron_runtime.text.json_file import JsonTokenizer
from nemotron_runtime.text.sentencepiece import SentencePieceTokenizer

__all__ = ["Tokenizer"]


class Tokenizer:
    """The tokenizer of a checkpoint or a bundle; see :meth:`from_directory`.

    Attributes:
        vocab_size: ids that have a piece are below it.
        special_ids: control tokens, which decoding leaves out.
    """

    def __init__(self, backend: TokenizerBackend) -> None:
        self._backend = backend
        self.vocab_size, self.special_ids = backend.vocab_size, backend.special_ids

    @staticmethod
    def from_directory(directory: str | Path) -> Tokenizer:
        """Reads tokenizer.json, or tokenizer.model where there is none.

        Raises:
            TokenizerError: neither is there, or the file is broken.
        """
        folder = Path(directory)
        if (folder / "tokenizer.json").is_file():
            return Tokenizer(JsonTokenizer(folder / "tokenizer.json"))
        if (folder / "tokenizer.model").is_file():
            return Tokenizer(SentencePieceTokenizer(folder / "tokenizer.model"))
        remedy = "copy the checkpoint's tokenizer files there"
        raise TokenizerError("neither", "tokenizer.json or tokenizer.model", remedy, where=str(folder))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: the text.
            add_special_tokens: add what the tokenizer puts around a text (mostly a begin-of-sequence token before it).

        Raises:
            TokenizerError: not a string, or one with lone surrogates.
        """
        _check_text(text)
        return self._backend.encode(text, add_special_tokens)

    def encode_spans(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> Encoding:
        """Token ids of a text, or of two as one sequence, with the characters that each token stands for.

        Raises:
            TokenizerError: as :meth:`encode`.
        """
        for each in (text,) if pair is None else (text, pair):
            _check_text(each)
        return self._backend.encode_spans(text, pair, add_special_tokens)

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
        return self._backend.decode([t for t in tokens if not (skip_special_tokens and t in self.special_ids)])

    def incremental(self, context: Sequence[int] = ()) -> IncrementalDecoder:
        """A decoder for the tokens of one stream; special tokens and ids without a piece have no text.

        Args:
            context: the tokens before the stream. SentencePiece drops the space before a text's first word, so
                an answer decoded without its prompt would lose one.
        """
        return IncrementalDecoder(self._backend.decode, self.byte_of, self._is_silent, context)

    def byte_of(self, token_id: int) -> int | None:
        """The byte that a byte-fallback piece stands for."""
        return self._backend.byte_of(token_id)

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
