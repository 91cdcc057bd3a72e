"""What an executor is given, and what it gives: new tokens of several sequences, and outputs at some of them.

Shapes: Q sequences, N new tokens of all of them together, K positions whose outputs are wanted, P pages of a sequence,
V values of an output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.candidates import Candidates
from nemotron_runtime.sampling.device import Sampling

__all__ = ["Batch", "Ids", "Logits", "Outputs"]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """New tokens, one sequence after the other and without padding.

    Attributes:
        token_ids: int64 [N].
        query_offsets: int64 [Q + 1]; those of sequence q are ``token_ids[query_offsets[q]:query_offsets[q + 1]]``. A
            sequence may have none.
        context_lengths: int64 [Q], tokens in each sequence's cache already; the new ones follow them.
        wanted: int64 [K], indices into ``token_ids`` whose outputs are wanted, those of a sequence together and the
            sequences in order.
        block_table: int32 [Q, P], the pages of each sequence; None for contiguous caches, where sequence q of the
            batch is sequence q of the cache.
        sampling: what to choose where the logits are; None for the outputs alone.
    """

    token_ids: Ids
    query_offsets: Ids
    context_lengths: Ids
    wanted: Ids
    block_table: npt.NDArray[np.int32] | None = None
    sampling: Sampling | None = None


class Outputs:
    """The outputs at the wanted positions; valid until the executor's next run.

    Args:
        fetch: gives the logits; called when they are first asked for.

    Attributes:
        tokens: int64 [K] for :class:`~nemotron_runtime.sampling.device.Greedy`.
        candidates: for :class:`~nemotron_runtime.sampling.device.TopCandidates`.
    """

    __slots__ = ("_fetch", "_logits", "candidates", "tokens")

    def __init__(
        self, fetch: Callable[[], Logits], tokens: Ids | None = None, candidates: Candidates | None = None
    ) -> None:
        self._fetch = fetch
        self._logits: Logits | None = None
        self.tokens, self.candidates = tokens, candidates

    @property
    def logits(self) -> Logits:
        """float32 [K, V], on the host."""
        if self._logits is None:
            self._logits = self._fetch()
        return self._logits
