"""Text to token ids and back: tokenizer.json by tokenizers, tokenizer.model by sentencepiece."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from nemotron_errors import TokenizerError

from nemotron_runtime.detokenizer import IncrementalDecoder
from nemotron_runtime.encoding import Encoding

__all__ = ["Tokenizer", "read_json_object"]

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
            return _SentencePieceTokenizer(folder / "tokenizer.model")
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
        match = _BYTE_PIECE.fullmatch(piece) if piece else None
        return int(match[1], 16) if match else None

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding:
        found = self._tokenizer.encode(text, pair, add_special_tokens=add_special_tokens)
        return Encoding(tuple(found.ids), tuple(found.offsets), tuple(found.sequence_ids))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _character_spans(text: str, pieces: Sequence[Any]) -> list[tuple[int, int]]:
    """Spans in characters of sentencepiece's pieces, whose own count UTF-8 bytes."""
    character_at = [index for index, sign in enumerate(text) for _ in sign.encode()] + [len(text)]
    spans: list[tuple[int, int]] = []
    for piece in reversed(pieces):
        if piece.begin == piece.end and spans:
            # the first bytes of a character are empty pieces; the last one stands for all of it
            spans.append(spans[-1])
        else:
            spans.append((character_at[piece.begin], character_at[piece.end]))
    return spans[::-1]


class _SentencePieceTokenizer(Tokenizer):
    """tokenizer.model; tokenizer_config.json beside it says whether a text begins with bos and ends with eos."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError) as error:
            remedy = "restore the file from the checkpoint"
            raise TokenizerError(f"a broken file ({error})", "a tokenizer.model", remedy, where=str(path)) from error
        processor = self._processor
        config = read_json_object(path.parent / "tokenizer_config.json")
        self.vocab_size = processor.GetPieceSize()
        self.special_ids = frozenset(
            i for i in range(self.vocab_size) if processor.IsControl(i) or processor.IsUnknown(i)
        )
        ordinary = (i for i in range(self.vocab_size) if i not in self.special_ids and not processor.IsByte(i))
        self._ordinary = next((i for i in ordinary if not processor.IsUnused(i)), None)
        self._bos = [processor.bos_id()] if config.get("add_bos_token", True) and processor.bos_id() >= 0 else []
        self._eos = [processor.eos_id()] if config.get("add_eos_token", False) and processor.eos_id() >= 0 else []
        self._refuse_foreign_tokens(path.parent, config)

    def byte_of(self, token_id: int) -> int | None:
        if not self._processor.IsByte(token_id):
            return None
        match = _BYTE_PIECE.fullmatch(self._processor.IdToPiece(token_id))
        return int(match[1], 16) if match else None

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = list(self._processor.EncodeAsIds(text))
        return [*self._bos, *ids, *self._eos] if add_special_tokens else ids

    def _encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        texts: list[int | None] = []
        bos, eos = (self._bos, self._eos) if add_special_tokens else ([], [])
        for number, each in enumerate((text,) if pair is None else (text, pair)):
            pieces = self._processor.Encode(each, return_type="proto").pieces
            ids += [*bos, *(piece.id for piece in pieces), *eos]
            spans += [*((0, 0) for _ in bos), *_character_spans(each, pieces), *((0, 0) for _ in eos)]
            texts += [*(None for _ in bos), *(number for _ in pieces), *(None for _ in eos)]
        return Encoding(tuple(ids), tuple(spans), tuple(texts))

    def _decode(self, ids: list[int]) -> str:
        # sentencepiece itself gives control tokens no text, and unknown ones a sign
        text = ""
        for special, group in groupby(ids, self.special_ids.__contains__):
            run = list(group)
            if special:
                text += "".join(map(self._processor.IdToPiece, run))
            else:
                # only in front of the whole text a first word loses its space
                ahead = [] if not text or self._ordinary is None else [self._ordinary]
                text += self._processor.DecodeIds(ahead + run)[len(self._processor.DecodeIds(ahead)) :]
        return text

    def _refuse_foreign_tokens(self, folder: Path, config: dict[str, Any]) -> None:
        """Refuses tokens beside the model, which sentencepiece would split into pieces."""
        added = {piece: int(token) for piece, token in read_json_object(folder / "added_tokens.json").items()}
        for token, entry in config.get("added_tokens_decoder", {}).items():
            added[entry["content"] if isinstance(entry, dict) else str(entry)] = int(token)
        for piece, token in added.items():
            inside = token < self.vocab_size and self._processor.IdToPiece(token) == piece
            if not inside:
                raise TokenizerError(
                    f"added token {piece!r} with id {token}",
                    "tokens that tokenizer.model holds itself",
                    "convert the tokenizer to tokenizer.json (transformers: AutoTokenizer, save_pretrained)",
                    where=str(folder),
                )


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
