"""What a head decides, and how often an engine decides otherwise than the reference.

Shapes: k positions, C values of each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["decision_flips"]


def decision_flips(
    task: str, found_kC: npt.NDArray[np.float32], expected_kC: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32] | None:
    """The reference's margins of the decisions that differ.

    A classifier decides for a class at each position; an answer's start and end are each a position. A head of one
    value, or none, decides nothing.

    Returns:
        For each differing decision, the reference's value of its own choice minus that of the engine's; None where
        the task has no decisions.
    """
    if task == "question-answering":
        found_kC, expected_kC = found_kC.T, expected_kC.T
    elif task not in ("sequence-classification", "token-classification") or found_kC.shape[-1] < 2:
        return None
    row = np.arange(len(expected_kC))
    chosen, right = found_kC.argmax(-1), expected_kC.argmax(-1)
    return (expected_kC[row, right] - expected_kC[row, chosen])[chosen != right]
