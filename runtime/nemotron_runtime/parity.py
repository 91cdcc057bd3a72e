"""The judge: drives a session over the reference's prompts and holds its numbers against eager PyTorch's.

Shapes: B rows, k positions with logits, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError, LimitError

from nemotron_runtime.generation import GenerationParams, generate
from nemotron_runtime.reference import Reference, ReferencePrompt, read_reference, write_reference
from nemotron_runtime.report import ParityReport, ParityRow
from nemotron_runtime.sessions import Session

__all__ = ["ParityReport", "ParityRow", "judge", "read_reference", "write_reference"]

Progress = Callable[[str, int, int], None]

# design: RMSE at most this much above PyTorch's own run in the same dtype
RMSE_RATIO = 1.05
# design: a greedy flip counts where the reference's margin exceeds so many times PyTorch's own RMSE
FLIP_MARGIN = 4.0
# padded rows are built from prompts up to this length, so that the batch stays cheap
_SHORT = 256
_CHUNKS = 3


def judge(session: Session, reference: Reference, dtype: str, *, progress: Progress | None = None) -> ParityReport:
    """Replays the reference and judges.

    For fp32: max |Δlogit| at most tolerance × logit range in every check, and greedy tokens identical. In a lower
    precision: the RMSE over all prefill and decode logits at most 1.05 × PyTorch's own, padded and chunked runs at
    most 1.05 × the larger of PyTorch's and the session's own, and greedy flips only where the reference's margin is
    at most 4 × PyTorch's RMSE.

    Args:
        session: any session; its cache is replaced.
        reference: what to judge by.
        dtype: the dtype that the session computes in.
        progress: told (stage, done, total).

    Returns:
        A row for each check and prompt.

    Raises:
        LimitError: a prompt past the session's limits.
        BundleError: a low-precision bundle whose reference lacks PyTorch's own RMSE, or another vocabulary.
    """
    _check_fit(session, reference, dtype)
    judged = (_Fp32 if dtype == "float32" else _LowPrecision)(session, reference)
    total = 2 * len(reference.prompts) + 1
    for i, prompt in enumerate(reference.prompts):
        if progress:
            progress("parity", 2 * i, total)
        judged.whole(prompt)
        if progress:
            progress("parity", 2 * i + 1, total)
        judged.chunked(prompt)
    judged.padded()
    judged.finish()
    if progress:
        progress("parity", total, total)
    return ParityReport(tuple(judged.rows), dtype, reference.logit_range)


class _Judge(ABC):
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
        self.judge_again(f"prefill in chunks of {chunk}", _name(n), [(logits, prompt.logits)])

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


class _Fp32(_Judge):
    def judge_whole(
        self,
        prompt: ReferencePrompt,
        prefill: npt.NDArray[np.float32],
        steps: npt.NDArray[np.float32],
        choices: npt.NDArray[np.int64],
    ) -> None:
        name = _name(len(prompt.ids))
        self.judge_again("prefill", name, [(prefill, prompt.logits)])
        if len(steps):
            self.judge_again("cached decode", name, [(steps, prompt.step_logits)])
        params = GenerationParams(max_new_tokens=len(prompt.greedy))
        # free running: every token is the session's own
        tokens = np.array(generate(self.session, [prompt.ids], params)[0].token_ids)
        wrong = np.flatnonzero(tokens != prompt.greedy)
        note = ""
        if len(wrong):
            at = int(wrong[0])
            note = f"token {at} is {tokens[at]}, not {prompt.greedy[at]} (reference margin {prompt.margins[at]:.3g})"
        check = f"greedy, {len(tokens)} tokens differing"
        self.rows.append(ParityRow(check, name, float(len(wrong)), 0.0, not len(wrong), note))

    def judge_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        worst = max(float(np.abs(found - expected).max()) for found, expected in pairs)
        # max() of Python may drop a NaN
        finite = all(np.isfinite(found).all() for found, _ in pairs)
        measured = worst / self.reference.logit_range if finite else float("nan")
        tolerance = self.reference.tolerance
        note = "" if finite else "NaN or infinity among the logits"
        self.rows.append(ParityRow(check, name, measured, tolerance, measured <= tolerance, note))

    def finish(self) -> None:
        # every fp32 row stands for itself
        return


class _LowPrecision(_Judge):
    def __init__(self, session: Session, reference: Reference) -> None:
        super().__init__(session, reference)
        assert reference.eager_rmse is not None
        self._eager_rmse = reference.eager_rmse
        self._pairs: list[tuple[Any, Any]] = []

    def judge_whole(
        self,
        prompt: ReferencePrompt,
        prefill: npt.NDArray[np.float32],
        steps: npt.NDArray[np.float32],
        choices: npt.NDArray[np.int64],
    ) -> None:
        self._pairs += [(prefill, prompt.logits), (steps, prompt.step_logits)]
        flipped = choices != prompt.greedy
        wrong = flipped & (prompt.margins > FLIP_MARGIN * self._eager_rmse)
        note = f"{int(flipped.sum())} flips, margins up to {prompt.margins[flipped].max():.3g}" if flipped.any() else ""
        count = float(wrong.sum())
        check = f"greedy, {len(choices)} tokens, flips past the margin"
        self.rows.append(ParityRow(check, _name(len(prompt.ids)), count, 0.0, count == 0, note))

    def judge_again(self, check: str, name: str, pairs: Sequence[tuple[Any, Any]]) -> None:
        bound = max(self._eager_rmse, _rmse(self._pairs))
        self._ratio(f"{check}, RMSE ratio", name, _rmse(pairs) / bound)

    def finish(self) -> None:
        ratio = _rmse(self._pairs) / self._eager_rmse
        self._ratio("prefill and cached decode, RMSE ratio to PyTorch", "all", ratio)

    def _ratio(self, check: str, name: str, ratio: float) -> None:
        self.rows.append(ParityRow(check, name, ratio, RMSE_RATIO, ratio <= RMSE_RATIO))


def _rmse(pairs: Sequence[tuple[Any, Any]]) -> float:
    squares = np.concatenate([np.square(np.subtract(a, b, dtype=np.float64)).ravel() for a, b in pairs])
    return float(np.sqrt(squares.mean()))


def _name(tokens: int) -> str:
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


def _check_fit(session: Session, reference: Reference, dtype: str) -> None:
    if dtype != "float32" and reference.eager_rmse is None:
        found = f"a {dtype} bundle and a reference without eager_rmse"
        raise BundleError(found, "PyTorch's own RMSE in that dtype", "build the bundle again", where="reference")
    for prompt in reference.prompts:
        if prompt.logits.shape[-1] != session.vocab_size:
            found = f"logits of {prompt.logits.shape[-1]} tokens"
            raise BundleError(found, f"{session.vocab_size}", "build the bundle again", where="reference")
        if len(prompt.ids) + len(prompt.greedy) > session.limits.max_seq_len:
            found = f"{len(prompt.ids)} prompt tokens and {len(prompt.greedy)} greedy ones"
            expected = f"at most {session.limits.max_seq_len}"
            raise LimitError(found, expected, "build the bundle again", where="reference")
