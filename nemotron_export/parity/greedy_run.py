"""What is run to make a reference: prompts and greedy steps, and the same tokens again in a low precision.

Shapes: k positions with outputs, V outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from nemotron_runtime.checks.reference import ReferencePrompt

from nemotron_export.parity.layerwise import Feed, OnStep
from nemotron_export.parity.prompts import PromptPlan
from nemotron_export.parity.reference_recorder import PromptRecorder

__all__ = ["FedModel", "run_prompts", "run_rmse"]


class FedModel(Protocol):
    """Sequences after caches of their own: a :class:`LayerwiseModel` or a :class:`WholeModel`."""

    def feed(self, feeds: Sequence[Sequence[Feed]], on_step: OnStep) -> list[list[torch.Tensor]]:
        """Feeds every sequence its tokens; gives outputs [k, V] of each feed."""


def run_prompts(model: FedModel, plan: PromptPlan, on_step: OnStep) -> tuple[ReferencePrompt, ...]:
    """Feeds all prompts, then one greedy token to each of them at a time; see :class:`PromptRecorder`.

    Args:
        model: in fp32, with a fresh sequence for each prompt.
        plan: prompts and greedy steps.
        on_step: told (steps done, steps in all).
    """
    recorders = [PromptRecorder(ids, plan.steps) for ids in plan.prompts]
    passes = max(plan.steps, 1)

    def progress_of(done: int) -> OnStep:
        return lambda step, steps: on_step(done * steps + step, passes * steps)

    prefilled = model.feed([[Feed(r.ids, r.positions)] for r in recorders], progress_of(0))
    for recorder, (outputs_kV,) in zip(recorders, prefilled, strict=True):
        recorder.prefilled(outputs_kV)
    for step in range(plan.steps):
        tokens = [recorder.choose() for recorder in recorders]
        if step == plan.steps - 1:
            break
        stepped = model.feed([[Feed.token(token)] for token in tokens], progress_of(step + 1))
        for recorder, (output_1V,) in zip(recorders, stepped, strict=True):
            recorder.stepped(output_1V[0])
    return tuple(recorder.result() for recorder in recorders)


def run_rmse(model: FedModel, prompts: Sequence[ReferencePrompt], on_step: OnStep) -> float:
    """RMSE of a low-precision model's outputs from the reference's, fed with the reference's own tokens.

    Args:
        model: in a low precision, with a fresh sequence for each prompt.
        prompts: the reference's.
        on_step: told (steps done, steps in all).
    """
    feeds = []
    for prompt in prompts:
        last = int(prompt.step_positions[-1]) + 1 if len(prompt.step_positions) else 0
        steps = [Feed.token(int(prompt.greedy[i]), output=i in prompt.step_positions) for i in range(last)]
        feeds.append([Feed(prompt.ids, prompt.positions), *steps])
    squares = []
    for prompt, (prefilled, *stepped) in zip(prompts, model.feed(feeds, on_step), strict=True):
        squares.append(np.square(prefilled.float().numpy() - prompt.logits, dtype=np.float64).ravel())
        outputs = [output_1V[0].float().numpy() for output_1V in stepped if len(output_1V)]
        squares += [np.square(o - e, dtype=np.float64) for o, e in zip(outputs, prompt.step_logits, strict=True)]
    return float(np.sqrt(np.concatenate(squares).mean()))
