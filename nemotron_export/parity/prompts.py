"""The prompts that a bundle is checked with: short ones of different lengths, and one past 1,000 positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ENGLISH_TEXT", "GREEDY_STEPS", "LONG_PROMPT", "SHORT_PROMPTS", "PromptPlan", "plan_prompts"]

SHORT_PROMPTS = (5, 16, 33)
# Rotary errors vanish at position 0 and grow with the distance, so one prompt goes past 1,000 positions.
LONG_PROMPT = 1200
GREEDY_STEPS = 64
_SEED = 20

# Ordinary prose for checkpoints that have a tokenizer.
ENGLISH_TEXT = (
    "The river had been rising since the morning, and by noon the lower fields were under water. Nobody in the "
    "village was surprised: the winter had been long, the snow on the hills was deep, and a warm wind had blown "
    "for three days. Old Marten the miller opened the second gate, counted the boards that were left in the shed,"
    " and sent his daughter up the road to warn the people at the bridge. She ran past the school, the empty "
    "market and the garden with the old pear trees, where two men were tying a boat to the fence. When she came "
    "back, she said that the bridge would hold, if no more rain fell before the evening. It did not rain. In the "
    "night the water went down as quietly as it had come, and left a line of straw and branches along the walls, "
    "at the height of a man's knee. "
)


@dataclass(frozen=True)
class PromptPlan:
    """The prompts' ids, how many greedy steps follow each, and what was wanted where the limits allow less."""

    prompts: tuple[np.ndarray, ...]
    steps: int
    source: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What the reference records of the plan."""
        return {
            "prompts": [len(ids) for ids in self.prompts],
            "greedy_steps": self.steps,
            "source": self.source,
            "notes": list(self.notes),
        }


def plan_prompts(
    vocab_size: int,
    max_seq_len: int,
    encode: Callable[[str], Sequence[int]] | None = None,
    greedy_steps: int = GREEDY_STEPS,
) -> PromptPlan:
    """Chooses the prompts for a bundle's limits.

    Args:
        vocab_size: ids are below it.
        max_seq_len: prompt and greedy tokens together stay within it.
        encode: the tokenizer's; random ids by a fixed seed without one.
        greedy_steps: wanted after each prompt; 0 where the task makes no text.

    Returns:
        Prompts in ascending length, each int64 [n], and the number of greedy steps.
    """
    steps = min(greedy_steps, max_seq_len // 2)
    longest = max_seq_len - steps
    notes = []
    if steps < greedy_steps:
        notes.append(f"max_seq_len {max_seq_len} leaves room for {steps} greedy steps, not {greedy_steps}")
    if longest < LONG_PROMPT:
        notes.append(f"max_seq_len {max_seq_len} leaves room for a prompt of {longest} tokens, not {LONG_PROMPT}")
    lengths = sorted({*(n for n in SHORT_PROMPTS if n <= longest), min(LONG_PROMPT, longest)})
    if encode is None:
        generator = np.random.Generator(np.random.Philox(_SEED))
        prompts = tuple(generator.integers(0, vocab_size, n, dtype=np.int64) for n in lengths)
        return PromptPlan(prompts, steps, f"random ids, Philox seed {_SEED}", tuple(notes))
    prompts = tuple(_text_ids(encode, n, start) for start, n in enumerate(lengths))
    return PromptPlan(prompts, steps, "fixed English text through the checkpoint's tokenizer", tuple(notes))


def _text_ids(encode: Callable[[str], Sequence[int]], count: int, start: int) -> np.ndarray:
    """`count` ids of the text from its sentence number `start` on, repeated as often as it takes."""
    sentences = ENGLISH_TEXT.split(". ")
    text = ". ".join(sentences[start:] + sentences[:start])
    ids: Sequence[int] = []
    while len(ids) < count:
        ids = encode(text)
        text += text
    return np.asarray(ids[:count], dtype=np.int64)
