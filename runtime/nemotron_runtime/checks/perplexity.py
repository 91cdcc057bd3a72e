"""Perplexity of an engine on the reference's held-out text.

Shapes: n tokens of a text, k positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from nemotron_runtime.engine.engine import Engine

__all__ = ["measure_nll", "perplexity", "token_nll"]

# positions whose logits are held at once: 64 MiB with a vocabulary of 256,000
_POSITIONS = 64


def token_nll(logits_kV: npt.NDArray[np.float32], next_k: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """-log softmax(logits)[next], float32 [min(k, len(next))], in nats; the sum is taken in float64."""
    count = min(len(logits_kV), len(next_k))
    logits_kV = logits_kV[:count]
    top_k1 = logits_kV.max(-1, keepdims=True)
    total_k = np.exp(logits_kV - top_k1).sum(-1, dtype=np.float64)
    chosen_k = np.take_along_axis(logits_kV, next_k[:count, None], -1)[:, 0]
    return (np.log(total_k) - (chosen_k - top_k1[:, 0])).astype(np.float32)


def measure_nll(engine: Engine, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Negative log-likelihood of each token but the first, given those before it: float32 [n - 1], in nats."""
    engine.reset(1, len(ids))
    parts = []
    for start in range(0, len(ids) - 1, _POSITIONS):
        part = ids[start : min(start + _POSITIONS, len(ids) - 1)]
        (logits_kV,) = engine.prefill_at([part], [np.arange(len(part))])
        parts.append(token_nll(logits_kV, ids[start + 1 : start + 1 + len(part)]))
    return np.concatenate(parts)


def perplexity(nlls: Iterable[npt.NDArray[np.float32]]) -> float:
    """exp of the mean over all tokens of all texts; NaN where a value is not finite."""
    mean = float(np.concatenate(list(nlls)).mean(dtype=np.float64))
    # more than any model gives; exp would overflow
    return float(np.exp(mean)) if np.isfinite(mean) and mean < 700 else float("nan")
