"""Launches the kernels of the largest logits on PyTorch tensors.

Shapes: B rows, V vocabulary, P parts, C candidates.
"""

from __future__ import annotations

import torch

from nemotron_plugins.launches.candidates import candidates_merge_rule, candidates_rule, tournament
from nemotron_plugins.torch_call import check_tensor, has_pdl, run_launch

__all__ = ["candidates"]


def candidates(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logits of each row, as the session downloads them.

    Args:
        logits: [B, V], float32.
        temperature: above 0.

    Returns:
        Their keys, int64 [B, C], and each part's largest score and sum, float32 [B, P, 2]: see the kernels.

    Raises:
        RequestError: another shape or dtype, or not contiguous.
    """
    check_tensor("logits", logits, (logits.shape[0], logits.shape[-1]), logits, torch.float32)
    B, vocab = logits.shape
    pdl = has_pdl(logits)
    first, merge = candidates_rule(vocab=vocab, pdl=pdl), candidates_merge_rule(pdl=pdl)
    log_block, log_count = int(first.constexprs["LOG_BLOCK"]), int(first.constexprs["LOG_COUNT"])
    counts = tournament(vocab, log_block, log_count)
    keys = logits.new_empty((B, counts[0], 1 << log_count), dtype=torch.int64)
    masses = logits.new_empty((B, counts[0], 2))
    run_launch(first, logits, logits.new_tensor([temperature]), keys, masses, B=B)
    for parts in counts[1:]:
        largest = keys.new_empty((B, parts, 1 << log_count))
        run_launch(merge, keys, largest, keys.shape[1] << log_count, B=B, P=parts)
        keys = largest
    return keys[:, 0], masses
