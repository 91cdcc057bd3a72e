"""Text of a stream of tokens, piece by piece, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice, takewhile

from nemotron_runtime.text.backend import TokenizerBackend

__all__ = ["IncrementalDecoder"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# tokens of the context that can matter: one piece before the stream, or the bytes of a character that it cuts
_CONTEXT = 16


class IncrementalDecoder:
    """Turns one stream's tokens into text that adds up to what they add to the text of the tokens before them.

    A piece is decoded together with the one before it, since a leading space depends on whether something precedes.
    Byte-fallback pieces go through a UTF-8 decoder and give text once a character is whole. Byte-level pieces that
    end inside a character are held until the rest comes.

    Args:
        backend: of the tokenizer; its special tokens, and ids without a piece, have no text.
        context: the tokens before the stream (a prompt). Their text is not given out, save that a character which
            they cut comes with the token that completes it.
    """

    def __init__(self, backend: TokenizerBackend, context: Sequence[int] = ()) -> None:
        self._backend = backend
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._before: list[int] = []
        self._held: list[int] = []
        # what the context's own text already shows of the piece or the bytes under way
        self._shown = ""
        spoken = (token for token in map(int, reversed(context)) if not self._is_silent(token))
        for token in reversed(list(islice(spoken, _CONTEXT))):
            self.push(token)
        self._shown = self._held_text() if self._held else _REPLACEMENT if self._utf8.getstate()[0] else ""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain."""
        if self._is_silent(token_id):
            return ""
        byte = self._backend.byte_of(token_id)
        if byte is not None:
            text = self._release() + self._bytes_text(bytes([byte]))
            self._before = [token_id]
            return text
        broken = self._bytes_text(final=True)
        self._held.append(token_id)
        text = self._held_text()
        if text.endswith(_REPLACEMENT):
            return broken
        return broken + self._release()

    def flush(self) -> str:
        """What is left once no token follows; a character cut off becomes U+FFFD."""
        return self._release() + self._bytes_text(final=True)

    def _release(self) -> str:
        if not self._held:
            return ""
        text = self._held_text()
        self._before, self._held = self._held[-1:], []
        return self._unshown(text)

    def _held_text(self) -> str:
        decode = self._backend.decode
        return decode(self._before + self._held)[len(decode(self._before)) :]

    def _is_silent(self, token_id: int) -> bool:
        return token_id in self._backend.special_ids or not 0 <= token_id < self._backend.vocab_size

    def _bytes_text(self, data: bytes = b"", final: bool = False) -> str:
        text = self._utf8.decode(data, final)
        if final:
            self._utf8.reset()
        return self._unshown(text)

    def _unshown(self, text: str) -> str:
        if not text:
            return ""
        shown, self._shown = self._shown, ""
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shown, text, strict=False)))
        return text[known:]
