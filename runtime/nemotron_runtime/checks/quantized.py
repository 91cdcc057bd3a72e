"""The rule of quantized weights: perplexity within a budget, and drift that no working quantization shows.

Shapes: k positions with outputs, V values of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_formats.weights import Budget

from nemotron_runtime.checks.perplexity import measure_nll, perplexity
from nemotron_runtime.checks.reference import Reference, ReferencePrompt
from nemotron_runtime.checks.replay import Check, Replayed, prompt_name
from nemotron_runtime.checks.report import ParityRow
from nemotron_runtime.engine.engine import Engine

__all__ = ["QuantizedCheck"]


# A token may flip where the reference's margin is below so many RMSE: the difference of two errors deviates by sqrt(2)
# RMSE, so that this is 5.7 deviations, and the errors' tails are longer than those of a normal distribution.
_FLIP_MARGIN = 8.0


class QuantizedCheck(Check):
    """Perplexity of the held-out text; RMSE, largest drift and flips of the prompts.

    Args:
        engine: the engine.
        reference: what to compare with.
        budget: of the weights' format.
    """

    def __init__(self, engine: Engine, reference: Reference, budget: Budget) -> None:
        super().__init__(engine, reference)
        self._budget = budget
        outputs = [a.ravel() for p in reference.prompts for a in (p.logits, p.step_logits) if a.size]
        # an output that is the same everywhere has no scale of its own
        self._deviation = float(np.concatenate(outputs).std(dtype=np.float64)) or 1.0
        self._squares: list[npt.NDArray[np.float64]] = []
        self._worst = 0.0
        self._flips: list[tuple[str, int, npt.NDArray[np.float32]]] = []

    def check_whole(self, prompt: ReferencePrompt, found: Replayed) -> None:
        self.compare(prompt, found)
        if len(prompt.greedy):
            margins = prompt.margins[found.choices != prompt.greedy]
            self._flips.append((prompt_name(len(prompt.ids)), len(found.choices), margins))

    def check_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        errors = [np.subtract(found, expected, dtype=np.float64).ravel() for found, expected in pairs]
        self._squares += [np.square(error) for error in errors]
        # numpy's max, unlike Python's, keeps a NaN
        self._worst = float(np.max([self._worst, *(np.abs(error).max() for error in errors)]))
        rmse = float(np.sqrt(np.concatenate(self._squares[-len(errors) :]).mean()))
        self._row(f"{check}, RMSE / deviation", name, rmse / self._deviation, self._budget.rmse)

    def finish(self) -> None:
        rmse = float(np.sqrt(np.concatenate(self._squares).mean()))
        self._row("largest drift / range", "all", self._worst / self.reference.logit_range, self._budget.drift)
        for name, count, margins in self._flips:
            wrong = float((margins > _FLIP_MARGIN * rmse).sum()) if np.isfinite(rmse) else float("nan")
            note = f"{len(margins)} flips, margins up to {margins.max():.3g}" if len(margins) else ""
            self._row(f"greedy, {count} tokens, flips past {_FLIP_MARGIN:g} RMSE", name, wrong, 0.0, note)
        texts = self.reference.texts
        if not texts:
            return
        expected = perplexity(text.nll for text in texts)
        found = perplexity(measure_nll(self.engine, text.ids) for text in texts)
        tokens = sum(len(text.nll) for text in texts)
        note = f"{found:.4g}, {expected:.4g} in fp32"
        self._row("perplexity ratio", f"{tokens} tokens of text", found / expected, self._budget.perplexity, note)

    def _row(self, check: str, name: str, measured: float, bound: float, note: str = "") -> None:
        if not np.isfinite(measured):
            note = "NaN or infinity among the outputs"
        self.rows.append(ParityRow(check, name, measured, bound, measured <= bound, note))
