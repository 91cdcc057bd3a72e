"""Choosing tokens where a step's logits are: what may be asked for, and the interface of what chooses.

Shapes: B sequences, C candidates, V vocabulary, P parts of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "GREEDY",
    "Candidates",
    "DeviceSampler",
    "Greedy",
    "HostSampler",
    "Ids",
    "Logits",
    "Sampling",
    "TopCandidates",
    "find_candidates",
    "log_of_sums",
]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest token of each position, the lowest of equal ones, as ``numpy.argmax`` takes it."""


@dataclass(frozen=True, slots=True)
class TopCandidates:
    """The top-k candidates of each position; ``temperature``, above 0, is that of their ``log_sum``."""

    temperature: float


Sampling = Greedy | TopCandidates
GREEDY = Greedy()


@dataclass(frozen=True)
class Candidates:
    """The largest logits of each sequence.

    Attributes:
        ids: their tokens [B, C].
        logits: the logits [B, C], float32, descending; tokens that equal the last one may be missing.
        log_sum: log of the sum over all V tokens of exp(logit / temperature), float64 [B].
    """

    ids: Ids
    logits: Logits
    log_sum: npt.NDArray[np.float64]

    def of(self, sequences: Ids) -> Candidates:
        """Those of some sequences."""
        return Candidates(self.ids[sequences], self.logits[sequences], self.log_sum[sequences])


def find_candidates(logits_BV: Logits, count: int, temperature: float) -> Candidates:
    """The ``count`` largest of each sequence, the lowest of equal tokens first; NaN counts as infinity."""
    known_BV = np.where(np.isnan(logits_BV), np.float32(np.inf), logits_BV)
    ids_BC = np.argsort(-known_BV, axis=-1, kind="stable")[:, :count]
    log_sum_B = log_of_sums(known_BV / np.float32(temperature))
    return Candidates(ids_BC, np.take_along_axis(known_BV, ids_BC, -1), log_sum_B)


def log_of_sums(largest_BP: npt.NDArray[np.floating[Any]], sum_BP: npt.ArrayLike = 1.0) -> npt.NDArray[np.float64]:
    """Log of the sum over all tokens of exp(score), float64 [B], out of parts of the vocabulary.

    Args:
        largest_BP: each part's largest score.
        sum_BP: each part's sum of exp(score - largest); 1 where a part is a token.
    """
    wide_BP = largest_BP.astype(np.float64)
    most_B1 = wide_BP.max(-1, keepdims=True)
    # infinity less infinity is no number
    less_BP = np.subtract(wide_BP, most_B1, out=np.zeros_like(wide_BP), where=wide_BP != most_B1)
    log_sum_B: npt.NDArray[np.float64] = most_B1[:, 0] + np.log((sum_BP * np.exp(less_BP)).sum(-1))
    return log_sum_B


class DeviceSampler(ABC):
    """Chooses among the logits [B, V] of an executor's last step, where these are; holds until its next step."""

    @abstractmethod
    def greedy(self) -> Ids:
        """The likeliest tokens [B]."""

    @abstractmethod
    def candidates(self, temperature: float) -> Candidates:
        """The top-k candidates; an executor says by its ``candidate_count`` whether it has them."""

    @abstractmethod
    def logits(self) -> Logits:
        """All of the logits, on the host."""


class HostSampler(DeviceSampler):
    """Chooses by numpy among logits that are on the host."""

    def __init__(self, logits_BV: Logits, candidate_count: int = 0) -> None:
        self._logits_BV, self._candidate_count = logits_BV, candidate_count

    def greedy(self) -> Ids:
        likeliest_B: Ids = self._logits_BV.argmax(-1)
        return likeliest_B

    def candidates(self, temperature: float) -> Candidates:
        assert self._candidate_count > 0, "an executor that has candidates"
        return find_candidates(self._logits_BV, self._candidate_count, temperature)

    def logits(self) -> Logits:
        return self._logits_BV
