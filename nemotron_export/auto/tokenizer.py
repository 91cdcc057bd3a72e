"""A checkpoint's tokenizer with transformers' calls: padded batches, tensors, special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nemotron_errors import RequestError, TokenizerError
from nemotron_runtime.text.backend import read_json_object
from nemotron_runtime.text.tokenizer import Tokenizer

from nemotron_export.auto.batch import TokenBatch, tensor, wants_tensors
from nemotron_export.auto.lengths import UNBOUNDED, Lengths, Padding, Truncation, side, truncate

__all__ = ["BatchTokenizer"]


class BatchTokenizer:
    """The tokenizer of a checkpoint's folder.

    Attributes:
        folder: the checkpoint's folder.
        tokenizer: the runtime's tokenizer below it.
        padding_side: where a batch is padded unless a call says otherwise.
        truncation_side: the side that loses tokens unless a call says otherwise.
        model_max_length: tokens that the model was made for; 10^30 where its files name none.
        bos_token_id, eos_token_id, pad_token_id: ids of the special tokens, None where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.from_directory(folder)
        settings = read_json_object(folder / "tokenizer_config.json")
        named = {**read_json_object(folder / "special_tokens_map.json"), **settings}
        config = {**read_json_object(folder / "config.json"), **read_json_object(folder / "generation_config.json")}
        self.padding_side = side(settings.get("padding_side", "right"), "padding_side")
        self.truncation_side = side(settings.get("truncation_side", "right"), "truncation_side")
        self.model_max_length = _limit(settings.get("model_max_length"), folder)
        self.bos_token_id = self._special("bos", named, config)
        self.eos_token_id = self._special("eos", named, config)
        self.pad_token_id = self._special("pad", named, config)

    @property
    def vocab_size(self) -> int:
        """Ids that have a piece are below it."""
        return self.tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, **options: Any) -> Any:
        """Token ids of a text: a list, or int64 [1, S] where ``return_tensors`` is "pt"; otherwise :meth:`__call__`."""
        ids = self([text], **options)["input_ids"]
        return ids if options.get("return_tensors") else ids[0]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """Text of an id, of ids or of a tensor [S]; a list of texts for rows of ids or a tensor [B, S].

        Raises:
            TokenizerError: an id without a piece.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if ids and (isinstance(ids[0], (list, tuple)) or getattr(ids[0], "ndim", 0)):
            return self.batch_decode(ids, skip_special_tokens)
        return self.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """One text per row; see :meth:`decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation | None = None,
        max_length: int | None = None,
        padding_side: Literal["left", "right"] | None = None,
        truncation_side: Literal["left", "right"] | None = None,
        return_tensors: Literal["pt"] | None = None,
    ) -> TokenBatch:
        """Encodes a text or a batch of them.

        Args:
            text: one text gives one row (a list of ids, or [1, S]); several give several.
            add_special_tokens: add what the tokenizer puts around a text.
            padding: fill rows with the pad token: True and "longest" up to the longest one, "max_length" up to that.
            truncation: cut a text's tokens so that its row has ``max_length`` of them, special ones included.
            max_length: :attr:`model_max_length` where None. Without ``truncation`` and ``padding`` it cuts, too.
            padding_side: where; :attr:`padding_side` where None.
            truncation_side: the side that loses tokens; :attr:`truncation_side` where None.
            return_tensors: "pt" for tensors.

        Returns:
            ``input_ids`` and ``attention_mask`` (0 at padding): lists, or int64 [B, S].

        Raises:
            RequestError: rows of different lengths as one tensor, padding without a pad token, unknown values, a
                ``max_length`` that leaves no room for the special tokens.
            TokenizerError: not a string, or one with lone surrogates.
        """
        lengths = Lengths.of(padding, truncation, max_length, self.model_max_length)
        texts = [text] if isinstance(text, str) else text
        rows = self._cut(texts, add_special_tokens, lengths.longest, truncation_side)
        return self._batch(rows, lengths.width, padding_side, return_tensors, single=isinstance(text, str))

    def _cut(self, texts: Sequence[str], special: bool, longest: int | None, cut: Any) -> list[list[int]]:
        cut = side(self.truncation_side if cut is None else cut, "truncation_side")
        rows = [self.tokenizer.encode(text, special) for text in texts]
        if longest is not None:
            for index, row in enumerate(rows):
                if len(row) > longest:
                    plain = self.tokenizer.encode(texts[index], False) if special else row
                    rows[index] = truncate(row, plain, longest, cut)
        return rows

    def _batch(
        self,
        rows: list[list[int]],
        width: int | Literal["longest"] | None,
        padding_side: Any,
        return_tensors: Any,
        single: bool,
    ) -> TokenBatch:
        tensors = wants_tensors(return_tensors)
        pads = side(self.padding_side if padding_side is None else padding_side, "padding_side")
        masks = [[1] * len(row) for row in rows]
        if width is not None and rows:
            self._pad(rows, masks, max(map(len, rows)) if width == "longest" else width, pads)
        if tensors:
            if len({len(row) for row in rows}) > 1:
                found = f"rows of {min(map(len, rows))} to {max(map(len, rows))} tokens"
                raise RequestError(found, "rows of one length in a tensor", "call with padding=True")
            return TokenBatch(input_ids=tensor(rows), attention_mask=tensor(masks))
        if single:
            return TokenBatch(input_ids=rows[0], attention_mask=masks[0])
        return TokenBatch(input_ids=rows, attention_mask=masks)

    def _pad(self, rows: list[list[int]], masks: list[list[int]], width: int, side: str) -> None:
        if all(len(row) >= width for row in rows):
            return
        if self.pad_token_id is None:
            raise RequestError("no pad token", "one to pad with", "set tokenizer.pad_token_id", where="padding")
        for row, mask in zip(rows, masks, strict=True):
            missing = width - len(row)
            at = 0 if side == "left" else len(row)
            row[at:at] = [self.pad_token_id] * missing
            mask[at:at] = [0] * missing

    def _special(self, kind: str, named: dict[str, Any], config: dict[str, Any]) -> int | None:
        """The id of a token that the tokenizer's files name; the model's config tells it where they do not."""
        token = named.get(f"{kind}_token")
        content = token.get("content") if isinstance(token, dict) else token
        for candidate in sorted(self.tokenizer.special_ids):
            if content and self.tokenizer.decode([candidate], skip_special_tokens=False) == content:
                return candidate
        value = config.get(f"{kind}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and 0 <= value < self.vocab_size else None


def _limit(value: object, folder: Path) -> int:
    if value is None:
        return UNBOUNDED
    if type(value) not in (int, float) or not value >= 1:  # type: ignore[operator]
        where = str(folder / "tokenizer_config.json")
        found, expected = f"model_max_length = {value!r}", "a number of 1 or more"
        raise TokenizerError(found, expected, "correct the file", where=where)
    return UNBOUNDED if value >= UNBOUNDED else int(value)  # type: ignore[operator, call-overload]
