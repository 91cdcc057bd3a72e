"""Drives a session over the reference's prompts: whole, in chunks, in rows of different lengths.

Shapes: B rows, k positions with outputs, V values of each (the vocabulary for a language model).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nemotron_runtime.checks.reference import Reference, ReferencePrompt
from nemotron_runtime.checks.report import ParityRow
from nemotron_runtime.executors import Session

__all__ = ["Judge", "prompt_name"]

# padded rows are built from prompts up to this length, so that the batch stays cheap
_SHORT = 256
_CHUNKS = 3


class Judge(ABC):
    """What both rules share: driving the session and collecting rows."""

    def __init__(self, session: Session, reference: Reference) -> None:
        self.session, self.reference = session, reference
        self.rows: list[ParityRow] = []

    def whole(self, prompt: ReferencePrompt) -> None:
        """Prefill, cached decode and greedy tokens of one prompt alone."""
        self.session.reset(1, len(prompt.ids) + len(prompt.greedy))
        prefill = self.session.prefill_at([prompt.ids], [prompt.positions])[0]
        choices = [int(prefill[-1].argmax())]
        steps = np.empty_like(prompt.step_logits)
        # the last greedy token is never fed
        for p, token in enumerate(prompt.greedy[:-1]):
            logits_V = self.session.decode([token])[0]
            choices.append(int(logits_V.argmax()))
            steps[prompt.step_positions == p] = logits_V
        self.judge_whole(prompt, prefill, steps, np.array(choices[: len(prompt.greedy)]))

    def chunked(self, prompt: ReferencePrompt) -> None:
        """The prompt's prefill once more, in smaller chunks."""
        n = len(prompt.ids)
        if n < 2:
            return
        self.session.reset(1, n)
        chunk = -(-n // _CHUNKS)
        logits = self.session.prefill_at([prompt.ids], [prompt.positions], chunk=chunk)[0]
        self.judge_again(f"prefill in chunks of {chunk}", prompt_name(n), [(logits, prompt.logits)])

    def padded(self) -> None:
        """Rows of different lengths in one batch: prompts, and starts of prompts, whose logits are known too."""
        rows = _ragged_rows(self.reference.prompts, self.session.limits.max_batch)
        if len(rows) < 2:
            return
        prompts = [prompt.ids[: last + 1] for prompt, last in rows]
        # a row that is the start of a prompt has no known steps: it is frozen from the first one on
        steps_B = np.array([_known_steps(p) if last == len(p.ids) - 1 else 0 for p, last in rows])
        self.session.reset(len(rows), max(map(len, prompts)) + int(steps_B.max()))
        wanted = [prompt.positions[prompt.positions <= last] for prompt, last in rows]
        found = self.session.prefill_at(prompts, wanted)
        pairs = [(logits, prompt.logits[: len(logits)]) for logits, (prompt, _) in zip(found, rows, strict=True)]
        for p in range(int(steps_B.max())):
            going_B = p < steps_B
            tokens_B = [prompt.greedy[p] if go else 0 for (prompt, _), go in zip(rows, going_B, strict=True)]
            logits_BV = self.session.decode(tokens_B, going_B)
            for b in np.flatnonzero(going_B):
                prompt = rows[b][0]
                which = prompt.step_positions == p
                pairs += [(logits_BV[b : b + 1].copy(), prompt.step_logits[which])] if which.any() else []
        lengths = ", ".join(str(len(prompt)) for prompt in prompts)
        self.judge_again("padded rows, prefill and decode", f"rows of {lengths} tokens", pairs)

    @abstractmethod
    def judge_whole(
        self,
        prompt: ReferencePrompt,
        prefill: npt.NDArray[np.float32],
        steps: npt.NDArray[np.float32],
        choices: npt.NDArray[np.int64],
    ) -> None:
        """Judges a prompt's prefill logits, step logits and the likeliest token after each of its own tokens."""

    @abstractmethod
    def judge_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Judges (measured, reference) logits of a run in another shape."""

    @abstractmethod
    def finish(self) -> None:
        """Judges what is measured over all prompts."""


def prompt_name(tokens: int) -> str:
    """How rows of the report name a prompt."""
    return f"{tokens} tokens"


def _known_steps(prompt: ReferencePrompt) -> int:
    """Steps to feed until the last known step logits."""
    return int(prompt.step_positions[-1]) + 1 if len(prompt.step_positions) else 0


def _ragged_rows(prompts: Sequence[ReferencePrompt], max_batch: int) -> list[tuple[ReferencePrompt, int]]:
    """Up to ``max_batch`` (prompt, last position) of different lengths; the first and longest is a whole prompt."""
    ordered = sorted(prompts, key=lambda p: len(p.ids))
    short = [p for p in ordered if len(p.ids) <= _SHORT] or ordered[:1]
    rows = {len(p.ids): (p, len(p.ids) - 1) for p in short}
    for prompt in reversed(short):
        for last in prompt.positions:
            rows.setdefault(int(last) + 1, (prompt, int(last)))
    whole = sorted((r for r in rows.values() if r[1] == len(r[0].ids) - 1), key=lambda r: -r[1])
    starts = sorted((r for r in rows.values() if r[1] < len(r[0].ids) - 1), key=lambda r: -r[1])
    return (whole + starts)[:max_batch]
