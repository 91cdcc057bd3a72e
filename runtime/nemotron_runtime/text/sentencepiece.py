"""Text to token ids and back: tokenizer.model by sentencepiece."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from nemotron_errors import TokenizerError

from nemotron_runtime.text.backend import byte_of_piece, read_json_object
from nemotron_runtime.text.encoding import Encoding

__all__ = ["SentencePieceTokenizer"]


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


class SentencePieceTokenizer:
    """tokenizer.model; tokenizer_config.json next to it says whether a text begins with bos and ends with eos."""

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
        return byte_of_piece(self._processor.IdToPiece(token_id)) if self._processor.IsByte(token_id) else None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = list(self._processor.EncodeAsIds(text))
        return [*self._bos, *ids, *self._eos] if add_special_tokens else ids

    def encode_spans(self, text: str, pair: str | None, add_special_tokens: bool) -> Encoding:
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

    def decode(self, ids: list[int]) -> str:
        # sentencepiece itself gives control tokens no text, and unknown ones a sign
        text = ""
        for special, group in groupby(ids, self.special_ids.__contains__):
            run = list(group)
            if special:
                text += "".join(map(self._processor.IdToPiece, run))
            else:
                # only at the start of the whole text a first word loses its space
                ahead = [] if not text or self._ordinary is None else [self._ordinary]
                text += self._processor.DecodeIds(ahead + run)[len(self._processor.DecodeIds(ahead)) :]
        return text

    def _refuse_foreign_tokens(self, folder: Path, config: dict[str, Any]) -> None:
        """Refuses tokens that the model lacks, which sentencepiece would split into pieces."""
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
