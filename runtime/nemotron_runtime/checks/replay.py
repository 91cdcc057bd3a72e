"""Replays the reference's prompts on an engine: whole, in chunks, and several of different lengths together.

Shapes: B sequences, k positions with outputs, V values of each (the vocabulary for a language model).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemotron_runtime.checks.reference import Reference, ReferencePrompt
from nemotron_runtime.checks.report import ParityRow
from nemotron_runtime.engine.engine import Engine

__all__ = ["Check", "Replayed", "prompt_name"]

# padded sequences are built from prompts up to this length, so that the batch stays cheap
_SHORT = 256
_CHUNKS = 3


@dataclass(frozen=True)
class Replayed:
    """What an engine makes of one prompt.

    Attributes:
        prefill: outputs [k, V] at the prompt's positions.
        steps: logits after its greedy tokens, as the reference has them.
        choices: the likeliest token after each of its own tokens.
    """

    prefill: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]
    choices: npt.NDArray[np.int64]


class Check(ABC):
    """What all rules share: driving the engine and collecting the report's rows."""

    def __init__(self, engine: Engine, reference: Reference) -> None:
        self.engine, self.reference = engine, reference
        self.rows: list[ParityRow] = []

    def whole(self, prompt: ReferencePrompt) -> None:
        """Prefill, cached decode and greedy tokens of one prompt alone."""
        self.engine.reset(1, len(prompt.ids) + len(prompt.greedy))
        prefill = self.engine.prefill_at([prompt.ids], [prompt.positions])[0]
        choices = [int(prefill[-1].argmax())]
        steps = np.empty_like(prompt.step_logits)
        # the last greedy token is never fed
        for p, token in enumerate(prompt.greedy[:-1]):
            logits_V = self.engine.decode([token]).logits[0]
            choices.append(int(logits_V.argmax()))
            steps[prompt.step_positions == p] = logits_V
        self.check_whole(prompt, Replayed(prefill, steps, np.array(choices[: len(prompt.greedy)])))

    def chunked(self, prompt: ReferencePrompt) -> None:
        """The prompt's prefill once more, in smaller chunks."""
        n = len(prompt.ids)
        if n < 2:
            return
        self.engine.reset(1, n)
        chunk = -(-n // _CHUNKS)
        logits = self.engine.prefill_at([prompt.ids], [prompt.positions], chunk=chunk)[0]
        self.check_again(f"prefill in chunks of {chunk}", prompt_name(n), [(logits, prompt.logits)])

    def padded(self) -> None:
        """Sequences of different lengths in one batch: prompts, and starts of prompts, whose logits are known too."""
        sequences = _ragged(self.reference.prompts, self.engine.limits.max_batch)
        if len(sequences) < 2:
            return
        prompts = [prompt.ids[: last + 1] for prompt, last in sequences]
        # a sequence that is the start of a prompt has no known steps: it is frozen from the first one on
        steps_B = np.array([_known_steps(p) if last == len(p.ids) - 1 else 0 for p, last in sequences])
        self.engine.reset(len(sequences), max(map(len, prompts)) + int(steps_B.max()))
        wanted = [prompt.positions[prompt.positions <= last] for prompt, last in sequences]
        found = self.engine.prefill_at(prompts, wanted)
        pairs = [(logits, prompt.logits[: len(logits)]) for logits, (prompt, _) in zip(found, sequences, strict=True)]
        for p in range(int(steps_B.max())):
            going_B = p < steps_B
            tokens_B = [prompt.greedy[p] if go else 0 for (prompt, _), go in zip(sequences, going_B, strict=True)]
            logits_KV = self.engine.decode(tokens_B, going_B).logits
            for logits_V, b in zip(logits_KV, np.flatnonzero(going_B), strict=True):
                prompt = sequences[b][0]
                which = prompt.step_positions == p
                pairs += [(logits_V[None].copy(), prompt.step_logits[which])] if which.any() else []
        lengths = ", ".join(str(len(prompt)) for prompt in prompts)
        self.check_again("padded rows, prefill and decode", f"rows of {lengths} tokens", pairs)

    @abstractmethod
    def check_whole(self, prompt: ReferencePrompt, found: Replayed) -> None:
        """Checks one prompt alone."""

    def compare(self, prompt: ReferencePrompt, found: Replayed) -> None:
        """Holds outputs of prefill and of steps against the reference's, each for itself."""
        name = prompt_name(len(prompt.ids))
        self.check_again("prefill", name, [(found.prefill, prompt.logits)])
        if len(found.steps):
            self.check_again("cached decode", name, [(found.steps, prompt.step_logits)])

    @abstractmethod
    def check_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Checks (measured, reference) logits of a run in another shape."""

    @abstractmethod
    def finish(self) -> None:
        """Checks what is measured over all prompts."""


def prompt_name(tokens: int) -> str:
    """How rows of the report name a prompt."""
    return f"{tokens} tokens"


def _known_steps(prompt: ReferencePrompt) -> int:
    """Steps to feed until the last known step logits."""
    return int(prompt.step_positions[-1]) + 1 if len(prompt.step_positions) else 0


def _ragged(prompts: Sequence[ReferencePrompt], max_batch: int) -> list[tuple[ReferencePrompt, int]]:
    """Up to ``max_batch`` (prompt, last position) of different lengths; the first and longest is a whole prompt."""
    ordered = sorted(prompts, key=lambda p: len(p.ids))
    short = [p for p in ordered if len(p.ids) <= _SHORT] or ordered[:1]
    found = {len(p.ids): (p, len(p.ids) - 1) for p in short}
    for prompt in reversed(short):
        for last in prompt.positions:
            found.setdefault(int(last) + 1, (prompt, int(last)))
    whole = sorted((r for r in found.values() if r[1] == len(r[0].ids) - 1), key=lambda r: -r[1])
    starts = sorted((r for r in found.values() if r[1] < len(r[0].ids) - 1), key=lambda r: -r[1])
    return (whole + starts)[:max_batch]
