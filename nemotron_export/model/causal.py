"""The causal language model.

Shapes: B sequences, S new tokens, K positions that get logits, E hidden_size, V vocab_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.cache import Cache
from nemotron_export.model.generation import generate
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

    task = "causal-lm"

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation)
        self.model = NemotronModel(config, attn_implementation)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, 0.0, config.initializer_range)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes lm_head share the embedding's tensor where ``tie_word_embeddings`` is set."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def head(self, hidden_BSE: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden_BSE)

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
                [B, K], or as a boolean [B, S], which flattens sequences and positions to one axis.
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
        logits = self.head(_keep_positions(out.last_hidden_state, logits_to_keep))
        loss = None if labels is None else causal_lm_loss(logits, labels)
        result = CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
        return finish(result, return_dict, self.config)

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **params: Any
    ) -> torch.Tensor:
        """Continues each sequence by the runtime's loop; see :func:`nemotron_export.model.generation.generate`."""
        return generate(self, input_ids, attention_mask, **params)
