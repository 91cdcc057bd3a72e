"""The reference by :class:`LayerwiseModel`: passes over the file for prompts and greedy steps.

Shapes: k positions with outputs, V outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nemotron_runtime.checks.reference import ReferencePrompt

from nemotron_export.parity.layerwise import Feed, LayerwiseModel, OnLayer
from nemotron_export.parity.prompts import PromptPlan
from nemotron_export.parity.reference_recorder import PromptRecorder

__all__ = ["layerwise_reference", "layerwise_rmse"]


def layerwise_reference(model: LayerwiseModel, plan: PromptPlan, on_layer: OnLayer) -> tuple[ReferencePrompt, ...]:
    """What :func:`nemotron_export.parity.reference.make_reference` gives, in one pass over the file for all prompts,
    and one for each greedy step.

    Args:
        model: in fp32, with a fresh row for each prompt.
        plan: prompts and greedy steps.
        on_layer: told (layers done, layers in all passes).
    """
    recorders = [PromptRecorder(ids, plan.steps) for ids in plan.prompts]
    passes = max(plan.steps, 1)

    def progress_of(done: int) -> OnLayer:
        return lambda layer, layers: on_layer(done * layers + layer, passes * layers)

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


def layerwise_rmse(model: LayerwiseModel, prompts: Sequence[ReferencePrompt], on_layer: OnLayer) -> float:
    """What :func:`nemotron_export.parity.reference.eager_rmse` gives, in one pass over the file.

    Args:
        model: in a low precision, with a fresh row for each prompt.
        prompts: the reference's.
        on_layer: told (layers done, layers in all).
    """
    feeds = []
    for prompt in prompts:
        last = int(prompt.step_positions[-1]) + 1 if len(prompt.step_positions) else 0
        steps = [Feed.token(int(prompt.greedy[i]), output=i in prompt.step_positions) for i in range(last)]
        feeds.append([Feed(prompt.ids, prompt.positions), *steps])
    squares = []
    for prompt, (prefilled, *stepped) in zip(prompts, model.feed(feeds, on_layer), strict=True):
        squares.append(np.square(prefilled.float().numpy() - prompt.logits, dtype=np.float64).ravel())
        outputs = [output_1V[0].float().numpy() for output_1V in stepped if len(output_1V)]
        squares += [np.square(o - e, dtype=np.float64) for o, e in zip(outputs, prompt.step_logits, strict=True)]
    return float(np.sqrt(np.concatenate(squares).mean()))
