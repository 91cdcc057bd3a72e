"""Calls of the kernels that find the largest logits.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from nemotron_runtime.sampling.device import Candidates

__all__ = ["random_logits", "run_candidates"]


def random_logits(rows: int, vocab: int, *, seed: int = 0) -> np.ndarray:
    """Logits [B, V] as models give them: a few large ones, and ties."""
    logits = np.random.default_rng(seed).normal(size=(rows, vocab)) * 4
    return (np.round(logits * 64) / 64).astype(np.float32)


def run_candidates(
    logits: np.ndarray, temperature: float, device: str = "cpu", *, log_block: int | None = None
) -> Candidates:
    """What the kernels find among logits [B, V]; in smaller parts of 2^log_block, 8 candidates, where that is given."""
    from nemotron_plugins.launches import candidates as candidates_rules
    from nemotron_runtime.executors.tensorrt.tournament import unpack

    from support.torch_kernels import candidates

    torch.set_num_threads(1)
    whole = candidates_rules._LOG_BLOCK, candidates_rules._LOG_COUNT
    block, count = whole if log_block is None else (log_block, 3)
    with mock.patch.multiple(candidates_rules, _LOG_BLOCK=block, _LOG_COUNT=count):
        keys, masses = candidates(torch.from_numpy(logits).to(device), torch.tensor([temperature], device=device))
    return unpack(keys.cpu().numpy(), masses.cpu().numpy(), logits.shape[1])
