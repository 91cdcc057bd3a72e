"""Text of a stream of tokens, piece by piece, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable

__all__ = ["IncrementalDecoder"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDecoder:
    """Turns one stream's tokens into text that adds up to the decoding of all of them.

    A piece is decoded together with the one before it, since a leading space depends on whether something precedes.
    Byte-fallback pieces go through a UTF-8 decoder and give text once a character is whole. Byte-level pieces that
    end inside a character are held until the rest comes.

    Args:
        decode: text of a list of tokens.
        byte_of: the byte that a token stands for, or None.
        is_silent: whether a token has no text.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        byte_of: Callable[[int], int | None],
        is_silent: Callable[[int], bool],
    ) -> None:
        self._decode, self._byte_of, self._is_silent = decode, byte_of, is_silent
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token makes certain."""
        if self._is_silent(token_id):
            return ""
        byte = self._byte_of(token_id)
        if byte is not None:
            text = self._release() + self._utf8.decode(bytes([byte]))
            self._before = [token_id]
            return text
        broken = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._held.append(token_id)
        text = self._held_text()
        if text.endswith(_REPLACEMENT):
            return broken
        self._settle()
        return broken + text

    def flush(self) -> str:
        """What is left once no token follows; a character cut off becomes U+FFFD."""
        text = self._release() + self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text

    def _release(self) -> str:
        text = self._held_text() if self._held else ""
        if self._held:
            self._settle()
        return text

    def _held_text(self) -> str:
        return self._decode(self._before + self._held)[len(self._decode(self._before)) :]

    def _settle(self) -> None:
        self._before, self._held = self._held[-1:], []
