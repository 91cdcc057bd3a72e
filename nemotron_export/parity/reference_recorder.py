"""Collects one prompt's part of a reference: which positions are kept, and what greedy decoding chooses.

Shapes: n prompt tokens, k positions with outputs, V values of each position.
"""

from __future__ import annotations

import numpy as np
import torch
from nemotron_runtime.checks.reference import ReferencePrompt

__all__ = ["PromptRecorder"]

_LM_POSITIONS = 3
_HEAD_POSITIONS = 64


class PromptRecorder:
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
