"""Choosing tokens where a step's logits are: what may be asked for, and the interface of what chooses.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.candidates import Candidates, find_candidates

__all__ = ["GREEDY", "DeviceSampler", "Greedy", "HostSampler", "Sampling", "TopCandidates"]

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
    """Chooses by numpy among logits that are on the host.

    Args:
        logits_BV: the logits.
        candidate_count: how many candidates to find.
    """

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
