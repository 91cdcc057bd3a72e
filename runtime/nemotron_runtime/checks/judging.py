"""`judge`: a session over the whole reference, by the rule of its dtype."""

from __future__ import annotations

from collections.abc import Callable

from nemotron_errors import BundleError, LimitError
from nemotron_formats.weights import WeightFormat

from nemotron_runtime.checks.driver import Judge
from nemotron_runtime.checks.quantized import QuantizedJudge
from nemotron_runtime.checks.reference import Reference
from nemotron_runtime.checks.report import ParityReport
from nemotron_runtime.checks.rules import Fp32Judge, LowPrecisionJudge
from nemotron_runtime.executors import Session

__all__ = ["Progress", "judge"]

Progress = Callable[[str, int, int], None]


def judge(
    session: Session,
    reference: Reference,
    dtype: str,
    *,
    weight_format: WeightFormat | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Replays the reference and judges.

    For fp32: max |Δlogit| at most tolerance × logit range in every check, and greedy tokens identical. In a lower
    precision: the RMSE over all prefill and decode logits at most 1.05 × PyTorch's own, padded and chunked runs at
    most 2 × the larger of PyTorch's and the session's worst prompt, and greedy flips only where the reference's
    margin is at most 4 × PyTorch's RMSE, but for one of 64 tokens, and never past 8 ×. Quantized weights: the
    perplexity of the held-out text at most 1.01 (8 bits) or 1.10 (4 bits) × fp32 PyTorch's, and drift within the bounds
    of :class:`Budget`.

    Args:
        session: any session; its cache is replaced.
        reference: what to judge by.
        dtype: the dtype that the session computes in.
        bits: of quantized weights.
        progress: told (stage, done, total).

    Returns:
        A row for each check and prompt.

    Raises:
        LimitError: a prompt past the session's limits.
        BundleError: a low-precision bundle whose reference lacks PyTorch's own RMSE, or another number of outputs.
    """
    _check_fit(session, reference, dtype, weight_format)
    if weight_format is not None:
        judged: Judge = QuantizedJudge(session, reference, weight_format.budget)
    else:
        judged = (Fp32Judge if dtype == "float32" else LowPrecisionJudge)(session, reference)
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


def _check_fit(session: Session, reference: Reference, dtype: str, weight_format: WeightFormat | None) -> None:
    if weight_format is not None and not reference.texts and reference.task == "causal-lm":
        found = "quantized weights and a reference without held-out text"
        raise BundleError(found, "text to measure perplexity on", "build the bundle again", where="reference")
    for text in reference.texts:
        if len(text.ids) > session.limits.max_seq_len:
            found, expected = f"a text of {len(text.ids)} tokens", f"at most {session.limits.max_seq_len}"
            raise LimitError(found, expected, "build the bundle again", where="reference")
    if weight_format is None and dtype != "float32" and reference.eager_rmse is None:
        found = f"a {dtype} bundle and a reference without eager_rmse"
        raise BundleError(found, "PyTorch's own RMSE in that dtype", "build the bundle again", where="reference")
    for prompt in reference.prompts:
        if prompt.logits.shape[-1] != session.output_size:
            found = f"outputs of {prompt.logits.shape[-1]} values"
            raise BundleError(found, f"{session.output_size}", "build the bundle again", where="reference")
        if len(prompt.ids) + len(prompt.greedy) > session.limits.max_seq_len:
            found = f"{len(prompt.ids)} prompt tokens and {len(prompt.greedy)} greedy ones"
            expected = f"at most {session.limits.max_seq_len}"
            raise LimitError(found, expected, "build the bundle again", where="reference")
