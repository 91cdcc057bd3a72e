"""Sequence classification: scores of a whole text, from its last token that is no padding.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemotron_runtime.bundle.records import HeadRecord
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.tasks.outputs import outputs_at, sigmoid, softmax

__all__ = ["Classification", "classify", "pooled_position"]


@dataclass(frozen=True)
class Classification:
    """The scores of one text.

    Attributes:
        label: the class with the highest score.
        score: its score.
        scores: class → probability: softmax over the classes, each class's own sigmoid where the model is
            multi-label or has one class, or the plain value of a regression.
        logits: float32 [C], as the model gives them.
    """

    label: str
    score: float
    scores: dict[str, float]
    logits: npt.NDArray[np.float32]


def pooled_position(ids: npt.NDArray[np.int64], pad_token_id: int | None) -> int:
    """The right-most position that is no padding, whose output stands for the text."""
    real = np.arange(len(ids)) if pad_token_id is None else np.flatnonzero(ids != pad_token_id)
    return int(real[-1]) if len(real) else 0


def classify(
    engine: Engine, head: HeadRecord, prompts: Sequence[Sequence[int]], pad_token_id: int | None
) -> list[Classification]:
    """Scores of each prompt's token ids.

    Raises:
        RequestError, LimitError: see :func:`outputs_at`.
    """
    pooled = [np.array([pooled_position(np.asarray(ids, np.int64), pad_token_id)]) for ids in prompts]
    return [_classification(outputs[0].copy(), head) for outputs in outputs_at(engine, prompts, pooled)]


def _classification(logits_C: npt.NDArray[np.float32], head: HeadRecord) -> Classification:
    if head.problem_type == "regression":
        scores_C = logits_C
    elif head.problem_type == "multi_label_classification" or (head.problem_type is None and len(logits_C) == 1):
        scores_C = sigmoid(logits_C)
    else:
        scores_C = softmax(logits_C)
    best = int(scores_C.argmax())
    scores = dict(zip(head.labels, map(float, scores_C), strict=True))
    return Classification(head.labels[best], float(scores_C[best]), scores, logits_C)
