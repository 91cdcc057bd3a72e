"""Outputs of an engine at chosen positions of any number of prompts.

Shapes: k positions, C values of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemotron_runtime.engine.engine import Engine

__all__ = ["outputs_at", "sigmoid", "softmax"]


def outputs_at(
    engine: Engine, prompts: Sequence[npt.ArrayLike], positions: Sequence[npt.ArrayLike]
) -> list[npt.NDArray[np.float32]]:
    """For each prompt its outputs [k, C]; more prompts than the engine takes at a time run in micro-batches.

    Raises:
        RequestError: no ids, or ids outside the vocabulary.
        LimitError: a prompt longer than max_seq_len.
    """
    found: list[npt.NDArray[np.float32]] = []
    most = engine.limits.max_batch
    for first in range(0, len(prompts), most):
        micro_batch = prompts[first : first + most]
        engine.reset(len(micro_batch), max(1, *(np.size(prompt) for prompt in micro_batch)))
        found += engine.prefill_at(micro_batch, positions[first : first + most])
    return found


def softmax(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / (1 + e^-x), without overflow."""
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
