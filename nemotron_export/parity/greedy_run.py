"""What is run to make a reference: prompts and greedy steps, and the same tokens again in a low precision.

Shapes: n prompt tokens, k positions with outputs, V outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nemotron_runtime.checks.reference import ReferencePrompt

from nemotron_export.parity.layerwise import Feed, LayerwiseModel, OnStep
from nemotron_export.parity.prompts import PromptPlan
from nemotron_export.parity.whole import WholeModel

__all__ = ["FedModel", "run_prompts", "run_rmse"]

_LM_POSITIONS = 3
_HEAD_POSITIONS = 64

FedModel = LayerwiseModel | WholeModel


def run_prompts(model: FedModel, plan: PromptPlan, on_step: OnStep) -> tuple[ReferencePrompt, ...]:
    """Feeds all prompts, then one greedy token to each of them at a time.

    Args:
        model: in fp32, with a fresh sequence for each prompt.
    """
    recorders = [_Recorder(ids, plan.steps) for ids in plan.prompts]
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


class _Recorder:
    """Takes a prompt's outputs in the order in which they are computed; greedy tokens are chosen here.

    A language model's logits are kept at the first, middle and last position of a prompt, and after the first, middle
    and last greedy token that is fed: a row of a large vocabulary is a megabyte. Other heads' outputs are kept at up
    to 64 positions.

    Args:
        ids: int64 [n].
        steps: greedy tokens to choose; 0 where the task makes no text.
    """

    def __init__(self, ids: np.ndarray, steps: int) -> None:
        n = len(ids)
        count = _LM_POSITIONS if steps else min(n, _HEAD_POSITIONS)
        self.ids = ids
        self.positions = np.unique(np.linspace(0, n - 1, count).round().astype(np.int64))
        # the last greedy token is never fed
        self._step_positions = sorted({p for p in (0, steps // 2, steps - 2) if 0 <= p < steps - 1})
        self._greedy: list[int] = []
        self._margins: list[float] = []
        self._step_logits: list[np.ndarray] = []

    def prefilled(self, outputs_kV: torch.Tensor) -> None:
        """Takes the outputs at `positions`."""
        self._outputs_kV = outputs_kV.numpy().copy()
        self._last_V = outputs_kV[-1]

    def choose(self) -> int:
        """The next greedy token."""
        best, second = torch.topk(self._last_V, 2).values.tolist()
        # topk may break a tie in another way than argmax, which generation uses
        self._greedy.append(int(torch.argmax(self._last_V)))
        self._margins.append(best - second)
        return self._greedy[-1]

    def stepped(self, output_V: torch.Tensor) -> None:
        """Takes the output after the token that was chosen last."""
        self._last_V = output_V
        if len(self._greedy) - 1 in self._step_positions:
            self._step_logits.append(output_V.numpy().copy())

    def result(self) -> ReferencePrompt:
        """What was collected."""
        empty = np.zeros((0, self._outputs_kV.shape[1]), np.float32)
        return ReferencePrompt(
            ids=self.ids,
            positions=self.positions,
            logits=self._outputs_kV,
            greedy=np.asarray(self._greedy, np.int64),
            margins=np.asarray(self._margins, np.float32),
            step_positions=np.asarray(self._step_positions, np.int64),
            step_logits=np.stack(self._step_logits) if self._step_logits else empty,
        )
