"""Text to token ids and back: tokenizer.json by tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron_errors import TokenizerError

from nemotron_runtime.text.backend import byte_of_piece
from nemotron_runtime.text.encoding import Encoding

__all__ = ["JsonTokenizer"]


class JsonTokenizer:
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

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding:
        found = self._tokenizer.encode(text, pair, add_special_tokens=add_special_tokens)
        return Encoding(tuple(found.ids), tuple(found.offsets), tuple(found.sequence_ids))

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _has_byte_fallback(decoder: object) -> bool:
    """Whether a tokenizer.json's decoder turns pieces such as <0x0A> into bytes."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteFallback" or any(map(_has_byte_fallback, decoder.get("decoders", ())))
