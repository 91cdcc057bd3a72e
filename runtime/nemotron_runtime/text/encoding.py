"""Token ids together with where they come from in the text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Encoding"]


@dataclass(frozen=True)
class Encoding:
    """Tokens of a text, or of two.

    Attributes:
        ids: token ids [n].
        spans: for each token the characters that it stands for, as (begin, end) of its text; (0, 0) for tokens that the
            tokenizer adds. Byte pieces of one character share its span.
        texts: for each token the text that it belongs to, 0 or 1; None for tokens that the tokenizer adds.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    texts: tuple[int | None, ...]
