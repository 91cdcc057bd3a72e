"""The traced path of every class: embedding, decoder layers on the dialect's ops, the head at chosen positions.

Shapes: B sequences, S new tokens, K positions that get an output, T capacity, E hidden_size, C outputs of the head,
h = R/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

__all__ = ["DialectPath"]


class DialectPath(nn.Module):
    """A backbone (embed_tokens, layers, norm) and what comes after it.

    Attributes:
        base_model_prefix: the attribute that holds the backbone, and the prefix of its state-dict keys.
    """

    base_model_prefix: ClassVar[str] = "model"

    @property
    def base_model(self) -> Any:
        """The model without its head."""
        return getattr(self, self.base_model_prefix, self)

    def head(self, hidden_BSE: torch.Tensor) -> torch.Tensor:
        """The class's outputs [B, S, C] from the backbone's normed hidden states; these themselves without a head."""
        return hidden_BSE

    def dialect_embed(self, input_ids: torch.Tensor, query_start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First part of the traced path: hidden [B, S, E] and position_ids [B, S], made here once."""
        position_ids = query_start.unsqueeze(1) + torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.base_model.embed_tokens(input_ids), position_ids

    def dialect_head(self, hidden: torch.Tensor, logits_index: torch.Tensor) -> torch.Tensor:
        """Last part of the traced path: outputs [B, K, C]; norm and head run on K tokens alone."""
        index_BKE = logits_index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return self.head(self.base_model.norm(torch.gather(hidden, 1, index_BKE)))

    def forward_dialect(
        self,
        input_ids: torch.Tensor,
        query_start: torch.Tensor,
        query_length: torch.Tensor,
        logits_index: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        k_caches: Sequence[torch.Tensor],
        v_caches: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """The traced path, by the contract of all targets: right-padded sequences after what their caches hold.

        Args:
            input_ids: [B, S].
            query_start: [B], tokens already in the sequence's cache.
            query_length: [B], real new tokens. The maths does not need it: what padding writes lies after the
                sequence's end, is hidden by causality and is overwritten later. Targets whose attention wants lengths
                read it.
            logits_index: [B, K], positions within S that get an output.
            cos, sin: [P, h].
            k_caches, v_caches: per layer [B, G, T, D].

        Returns:
            Outputs [B, K, C] (logits, or normed hidden states without a head) and the updated caches.
        """
        x_BSE, position_ids = self.dialect_embed(input_ids, query_start)
        keys, values = [], []
        for layer, k_cache, v_cache in zip(self.base_model.layers, k_caches, v_caches, strict=True):
            inputs = (cos, sin, position_ids, query_start, k_cache, v_cache)
            x_BSE, k_cache_out, v_cache_out = layer.forward_dialect(x_BSE, *inputs)
            keys.append(k_cache_out)
            values.append(v_cache_out)
        return self.dialect_head(x_BSE, logits_index), keys, values
