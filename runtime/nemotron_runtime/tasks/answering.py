"""Question answering: the span of a context that answers best.

Shapes: n context tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nemotron_errors import LimitError, RequestError

from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.tasks.outputs import outputs_at, softmax
from nemotron_runtime.text.encoding import Encoding

__all__ = ["Answer", "answer"]

_CONTEXT = 1


@dataclass(frozen=True)
class Answer:
    """A span of the context.

    Attributes:
        text: its characters, without blanks around them.
        score: probability of its first token as a start times that of its last token as an end.
        begin: first character in the context.
        end: the character after the last.
    """

    text: str
    score: float
    begin: int
    end: int


def answer(
    engine: Engine,
    encode: Callable[[str, str], Encoding],
    question: str,
    context: str,
    *,
    max_answer_tokens: int,
    window_overlap: int,
) -> Answer:
    """The best span over the whole context.

    A context that does not fit next to the question is read in windows that overlap; the best span of all wins.
    Probabilities are over the tokens of a window's context.

    Args:
        engine: of a question-answering bundle.
        encode: (question, context) → one sequence, question first.
        question: the question.
        context: the text that holds the answer.
        max_answer_tokens: tokens of an answer at most.
        window_overlap: tokens that two windows share.

    Raises:
        RequestError: an empty question or context, or limits that make no sense.
        LimitError: a question that leaves no room for a window.
    """
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            found = "an empty text" if isinstance(text, str) else type(text).__name__
            raise RequestError(found, "text", "give both question and context", where=name)
    if max_answer_tokens < 1 or window_overlap < 0:
        found = f"max_answer_tokens {max_answer_tokens}, window_overlap {window_overlap}"
        raise RequestError(found, "at least 1 and at least 0", "correct them", where="answer")
    encoding = encode(question, context)
    best: Answer | None = None
    windows = _windows(encoding, engine.limits.max_seq_len, window_overlap)
    prompts = [np.asarray(encoding.ids, np.int64)[window] for window in windows]
    inside = [np.array([i for i, at in enumerate(window) if encoding.texts[at] == _CONTEXT]) for window in windows]
    for window, positions, logits_n2 in zip(windows, inside, outputs_at(engine, prompts, inside), strict=True):
        first, last, score = _best_span(logits_n2, max_answer_tokens)
        if best is None or score > best.score:
            begin, end = (
                encoding.spans[window[positions[first]]][0],
                encoding.spans[window[positions[last]]][1],
            )
            text = context[begin:end]
            begin += len(text) - len(text.lstrip())
            best = Answer(text.strip(), score, begin, begin + len(text.strip()))
    assert best is not None, "a context that is not blank has tokens"
    return best


def _windows(encoding: Encoding, max_seq_len: int, overlap: int) -> list[npt.NDArray[np.int64]]:
    """Positions of each window: everything but the context, and a part of the context."""
    is_context = np.array([text == _CONTEXT for text in encoding.texts])
    context = np.flatnonzero(is_context)
    room = max_seq_len - int((~is_context).sum())
    if len(context) > room and room <= overlap:
        remedy = "shorten the question, lower window_overlap or build with a larger --max-seq-len"
        found = f"a question that leaves {room} of {max_seq_len} tokens"
        raise LimitError(found, f"more than the {overlap} that windows share", remedy, where="question")
    windows, first = [], 0
    while True:
        part = context[first : first + room]
        windows.append(np.sort(np.concatenate([np.flatnonzero(~is_context), part])))
        if first + room >= len(context):
            return windows
        first += room - overlap


def _best_span(logits_n2: npt.NDArray[np.float32], longest: int) -> tuple[int, int, float]:
    """(first, last, score) of the likeliest span of at most ``longest`` tokens; linear in n for a given length."""
    start_n, end_n = softmax(logits_n2[:, 0]), softmax(logits_n2[:, 1])
    best = (0, 0, -1.0)
    for length in range(min(longest, len(start_n))):
        scores = start_n[: len(start_n) - length] * end_n[length:]
        first = int(scores.argmax())
        if scores[first] > best[2]:
            best = (first, first + length, float(scores[first]))
    return best
