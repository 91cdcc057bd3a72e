"""The causal language model, in two paths: the reference one and the traced one.

Shapes: B rows, S new tokens, K positions that get logits, T cache slots, E hidden_size, V vocab_size, h = R/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nemotron_export.config import NemotronConfig
from nemotron_export.model.cache import Cache
from nemotron_export.model.decoder import NemotronDecoderLayer
from nemotron_export.model.losses import causal_lm_loss
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.outputs import CausalLMOutputWithPast, finish
from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = ["NemotronForCausalLM"]


def _keep_positions(hidden_BSE: torch.Tensor, kept: int | torch.Tensor) -> torch.Tensor:
    if isinstance(kept, int):
        return hidden_BSE[:, -kept:]
    if kept.ndim == 1:
        return hidden_BSE[:, kept]
    if kept.dtype == torch.bool:
        return hidden_BSE[kept]
    return torch.take_along_dim(hidden_BSE, kept.unsqueeze(-1), dim=1)


class NemotronForCausalLM(NemotronPreTrainedModel):
    """The language model: base model and lm_head (no bias), tied to the embedding where the config says so."""

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config)
        self.model = NemotronModel(config, attn_implementation)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, 0.0, config.initializer_range)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes lm_head share the embedding's tensor where ``tie_word_embeddings`` is set."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Puts another head in place; where the config ties it, it takes the embedding's tensor."""
        self.lm_head = value
        self.tie_weights()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """The reference path; arguments as :meth:`NemotronModel.forward`, and:

        Args:
            labels: [B, S], -100 where no loss is wanted; the loss is next-token cross-entropy in fp32.
            logits_to_keep: logits for the last so many positions (0: all); or for the positions given as [K], as
                [B, K], or as a boolean [B, S], which flattens rows and positions to one axis.
        """
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            cache_position,
            return_dict=True,
        )
        logits = self.lm_head(_keep_positions(out.last_hidden_state, logits_to_keep))
        loss = None if labels is None else causal_lm_loss(logits, labels)
        result = CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
        return finish(result, return_dict, self.config)

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **params: Any
    ) -> torch.Tensor:
        """Continues each row by the runtime's loop; see :func:`nemotron_export.model.generation.generate`."""
        from nemotron_export.model.generation import generate

        return generate(self, input_ids, attention_mask, **params)

    def dialect_embed(self, input_ids: torch.Tensor, query_start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First part of the traced path: hidden [B, S, E] and position_ids [B, S], made here once."""
        position_ids = query_start.unsqueeze(1) + torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.model.embed_tokens(input_ids), position_ids

    def dialect_head(self, hidden: torch.Tensor, logits_index: torch.Tensor) -> torch.Tensor:
        """Last part of the traced path: logits [B, K, V]; norm and lm_head run on K tokens alone."""
        index_BKE = logits_index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return self.lm_head(self.model.norm(torch.gather(hidden, 1, index_BKE)))

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
        """The traced path, by the row contract: right-padded rows behind what their caches hold.

        Args:
            input_ids: [B, S].
            query_start: [B], tokens already in the row's cache.
            query_length: [B], real new tokens. The maths does not need it: what padding writes lies behind the row's
                end, is hidden by causality and is replaced later. Targets whose attention wants lengths read it.
            logits_index: [B, K], positions within S that get logits.
            cos, sin: [P, h].
            k_caches, v_caches: per layer [B, G, T, D].

        Returns:
            logits [B, K, V] and the updated caches.
        """
        x_BSE, position_ids = self.dialect_embed(input_ids, query_start)
        keys, values = [], []
        for layer, k_cache, v_cache in zip(self.model.layers, k_caches, v_caches, strict=True):
            assert isinstance(layer, NemotronDecoderLayer)
            x_BSE, k_cache, v_cache = layer.forward_dialect(
                x_BSE, cos, sin, position_ids, query_start, k_cache, v_cache
            )
            keys.append(k_cache)
            values.append(v_cache)
        return self.dialect_head(x_BSE, logits_index), keys, values
