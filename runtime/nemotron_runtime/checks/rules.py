"""The two rules: fp32 by the largest difference, lower precision by RMSE next to PyTorch's own.

Shapes: k positions with outputs, V values of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nemotron_runtime.checks.decisions import decision_flips
from nemotron_runtime.checks.reference import Reference, ReferencePrompt
from nemotron_runtime.checks.replay import Check, Replayed, prompt_name
from nemotron_runtime.checks.report import ParityRow
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate

__all__ = ["FLIP_MARGIN", "RMSE_RATIO", "SHAPE_RATIO", "Fp32Check", "LowPrecisionCheck"]

# design: RMSE at most this much above PyTorch's own run in the same dtype
RMSE_RATIO = 1.05
# A run in another shape rounds at other places: its error is of the same size, but it is sampled at a prompt's few
# recorded positions, where it was seen to vary by a quarter. A mistake in chunks or padding is off by a factor of ten
# and more.
SHAPE_RATIO = 2.0
# design: a greedy flip counts where the reference's margin exceeds so many times PyTorch's own RMSE
FLIP_MARGIN = 4.0
# A difference of two logits' errors deviates by sqrt(2) RMSE, and RMSE itself by a factor of two between positions.
# PyTorch's own bfloat16 run, as good as bfloat16 gets, has one such flip among 256 tokens in 6 of 107 random models of
# two layers, never two, and none past 6.1 RMSE. So one of 64 tokens may have one, and none at twice the margin.
_FLIP_EVERY = 64
_FLIP_FAR = 2.0


class Fp32Check(Check):
    """max |Δ| / range of the reference's outputs at most the tolerance; tokens and decisions identical."""

    def check_whole(self, prompt: ReferencePrompt, found: Replayed) -> None:
        self.compare(prompt, found)
        name = prompt_name(len(prompt.ids))
        flips = decision_flips(self.reference.task, found.prefill, prompt.logits)
        if flips is not None:
            note = f"reference margins up to {flips.max():.3g}" if len(flips) else ""
            row = ParityRow("decisions differing", name, float(len(flips)), 0.0, not len(flips), note)
            self.rows.append(row)
        if len(prompt.greedy):
            self._check_greedy(prompt)

    def _check_greedy(self, prompt: ReferencePrompt) -> None:
        params = GenerationParams(max_new_tokens=len(prompt.greedy))
        # free running: every token is the engine's own
        tokens = np.array(generate(self.engine, [prompt.ids], params)[0].token_ids)
        wrong = np.flatnonzero(tokens != prompt.greedy)
        note = ""
        if len(wrong):
            at = int(wrong[0])
            note = f"token {at} is {tokens[at]}, not {prompt.greedy[at]} (reference margin {prompt.margins[at]:.3g})"
        check = f"greedy, {len(tokens)} tokens differing"
        row = ParityRow(check, prompt_name(len(prompt.ids)), float(len(wrong)), 0.0, not len(wrong), note)
        self.rows.append(row)

    def check_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        worst = max(float(np.abs(found - expected).max()) for found, expected in pairs)
        # max() of Python may drop a NaN
        finite = all(np.isfinite(found).all() for found, _ in pairs)
        measured = worst / self.reference.logit_range if finite else float("nan")
        tolerance = self.reference.tolerance
        note = "" if finite else "NaN or infinity among the outputs"
        self.rows.append(ParityRow(check, name, measured, tolerance, measured <= tolerance, note))

    def finish(self) -> None:
        # every fp32 row stands for itself
        return


class LowPrecisionCheck(Check):
    """RMSE against PyTorch's own in the same dtype; what the reference hardly decides may flip."""

    def __init__(self, engine: Engine, reference: Reference) -> None:
        super().__init__(engine, reference)
        assert reference.eager_rmse is not None
        self._eager_rmse = reference.eager_rmse
        self._pairs: list[tuple[Any, Any]] = []
        self._prompt_rmse: list[float] = []

    def check_whole(self, prompt: ReferencePrompt, found: Replayed) -> None:
        self._pairs += [(found.prefill, prompt.logits), (found.steps, prompt.step_logits)]
        self._prompt_rmse.append(_rmse(self._pairs[-2:]))
        name = prompt_name(len(prompt.ids))
        flips = decision_flips(self.reference.task, found.prefill, prompt.logits)
        if flips is not None:
            self._check_flips("decisions", name, len(found.prefill), flips)
        if len(prompt.greedy):
            margins = prompt.margins[found.choices != prompt.greedy]
            self._check_flips(f"greedy, {len(found.choices)} tokens", name, len(found.choices), margins)

    def _check_flips(self, what: str, name: str, choices: int, margins: npt.NDArray[np.float32]) -> None:
        bound, allowed = FLIP_MARGIN * self._eager_rmse, choices // _FLIP_EVERY
        count, far = int((margins > bound).sum()), int((margins > _FLIP_FAR * bound).sum())
        note = f"{len(margins)} flips, margins up to {margins.max():.3g}" if len(margins) else ""
        note += f" (margin {bound:.3g})" if count else ""
        note += f"; {far} past {_FLIP_FAR:g} × the margin, where none may be" if far else ""
        passed = count <= allowed and not far
        self.rows.append(ParityRow(f"{what}, flips past the margin", name, float(count), float(allowed), passed, note))

    def check_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        bound = max(self._eager_rmse, *self._prompt_rmse)
        self._ratio(f"{check}, RMSE ratio", name, _rmse(pairs) / bound, SHAPE_RATIO)

    def finish(self) -> None:
        ratio = _rmse(self._pairs) / self._eager_rmse
        self._ratio("prefill and cached decode, RMSE ratio to PyTorch", "all", ratio, RMSE_RATIO)

    def _ratio(self, check: str, name: str, ratio: float, bound: float) -> None:
        self.rows.append(ParityRow(check, name, ratio, bound, ratio <= bound))


def _rmse(pairs: Sequence[tuple[Any, Any]]) -> float:
    squares = np.concatenate([np.square(np.subtract(a, b, dtype=np.float64)).ravel() for a, b in pairs])
    return float(np.sqrt(squares.mean()))
