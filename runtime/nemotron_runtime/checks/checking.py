"""`check`: an engine over the whole reference, by the rule of its dtype and weight format."""

from __future__ import annotations

from collections.abc import Callable

from nemotron_errors import BundleError, LimitError
from nemotron_formats.weights import WeightFormat

from nemotron_runtime.checks.quantized import QuantizedCheck
from nemotron_runtime.checks.reference import Reference
from nemotron_runtime.checks.replay import Check
from nemotron_runtime.checks.report import ParityReport
from nemotron_runtime.checks.rules import Fp32Check, LowPrecisionCheck
from nemotron_runtime.engine.engine import Engine

__all__ = ["Progress", "check"]

Progress = Callable[[str, int, int], None]


def check(
    engine: Engine,
    reference: Reference,
    dtype: str,
    *,
    weight_format: WeightFormat | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Replays the reference and gives the verdict.

    For fp32: max |Δlogit| at most tolerance × logit range in every check, and greedy tokens identical. In a lower
    precision: the RMSE over all prefill and decode logits at most 1.05 × PyTorch's own, padded and chunked runs at
    most 2 × the larger of PyTorch's and the engine's worst prompt, and greedy flips only where the reference's
    margin is at most 4 × PyTorch's RMSE, but for one of 64 tokens, and never past 8 ×. Weights in a
    format of their own: the perplexity of the held-out text, and drift, within the format's budget.

    Args:
        engine: any engine; its cache is replaced.
        reference: what to compare with.
        dtype: the dtype that the engine computes in.
        weight_format: of quantized weights; None for the checkpoint's own.
        progress: told (stage, done, total).

    Returns:
        A row for each check and prompt.

    Raises:
        LimitError: a prompt past the engine's limits.
        BundleError: a low-precision bundle whose reference lacks PyTorch's own RMSE, or another number of outputs.
    """
    _check_fit(engine, reference, dtype, weight_format)
    if weight_format is not None:
        rule: Check = QuantizedCheck(engine, reference, weight_format.budget)
    else:
        rule = (Fp32Check if dtype == "float32" else LowPrecisionCheck)(engine, reference)
    total = 2 * len(reference.prompts) + 1
    for i, prompt in enumerate(reference.prompts):
        if progress:
            progress("parity", 2 * i, total)
        rule.whole(prompt)
        if progress:
            progress("parity", 2 * i + 1, total)
        rule.chunked(prompt)
    rule.padded()
    rule.finish()
    if progress:
        progress("parity", total, total)
    return ParityReport(tuple(rule.rows), dtype, reference.logit_range)


def _check_fit(engine: Engine, reference: Reference, dtype: str, weight_format: WeightFormat | None) -> None:
    if weight_format is not None and not reference.texts and reference.task == "causal-lm":
        found = "quantized weights and a reference without held-out text"
        raise BundleError(found, "text to measure perplexity on", "build the bundle again", where="reference")
    for text in reference.texts:
        if len(text.ids) > engine.limits.max_seq_len:
            found, expected = f"a text of {len(text.ids)} tokens", f"at most {engine.limits.max_seq_len}"
            raise LimitError(found, expected, "build the bundle again", where="reference")
    if weight_format is None and dtype != "float32" and reference.eager_rmse is None:
        found = f"a {dtype} bundle and a reference without eager_rmse"
        raise BundleError(found, "PyTorch's own RMSE in that dtype", "build the bundle again", where="reference")
    for prompt in reference.prompts:
        if prompt.logits.shape[-1] != engine.output_size:
            found = f"outputs of {prompt.logits.shape[-1]} values"
            raise BundleError(found, f"{engine.output_size}", "build the bundle again", where="reference")
        if len(prompt.ids) + len(prompt.greedy) > engine.limits.max_seq_len:
            found = f"{len(prompt.ids)} prompt tokens and {len(prompt.greedy)} greedy ones"
            expected = f"at most {engine.limits.max_seq_len}"
            raise LimitError(found, expected, "build the bundle again", where="reference")
