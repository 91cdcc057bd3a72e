"""The base model and the causal language model. State-dict keys are Hugging Face's.

Shapes: B rows, S new tokens, K positions that get logits, T cache slots, E hidden_size, V vocab_size, h = R/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from nemotron_errors import RequestError
from torch import nn

from nemotron_export.config import NemotronConfig
from nemotron_export.model.cache import Cache, DynamicCache
from nemotron_export.model.decoder import NemotronDecoderLayer
from nemotron_export.model.layernorm import LayerNorm1P
from nemotron_export.model.masks import causal_mask
from nemotron_export.model.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from nemotron_export.model.rotary import RotaryEmbedding

__all__ = ["NemotronForCausalLM", "NemotronModel", "NemotronPreTrainedModel"]


class NemotronPreTrainedModel(nn.Module):
    """What all classes share: the config and the initialisation."""

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.parameters()).dtype

    def _initialize(self) -> None:
        """Normal(0, initializer_range) for matrices, zero biases, gamma - 1 = 1 as the family does."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, LayerNorm1P):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, std)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()


class NemotronModel(NemotronPreTrainedModel):
    """Embedding, decoder layers, final norm.

    Args:
        config: the model's config.
        attn_implementation: "sdpa" or "eager".
    """

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config)
        self.attn_implementation = attn_implementation
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            NemotronDecoderLayer(config, index, attn_implementation) for index in range(config.num_hidden_layers)
        )
        self.norm = LayerNorm1P(config.hidden_size, eps=config.norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self._initialize()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """The reference path.

        Args:
            input_ids: [B, S]; or inputs_embeds [B, S, E].
            attention_mask: [B, past + S], 0 at padding.
            position_ids: [B, S]; counts on from the cache where None.
            past_key_values: a cache that the new tokens are added to.
            use_cache: makes a DynamicCache where none is given; ``config.use_cache`` where None.
            output_attentions: return the weights of all layers (eager alone has them).
            output_hidden_states: return the embedding and each layer's output (the last one normed).
            cache_position: [S]; taken as position_ids where those are None.

        Raises:
            RequestError: both or neither of input_ids and inputs_embeds; attentions asked of sdpa.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError(
                "both input_ids and inputs_embeds" if input_ids is not None else "neither input_ids nor inputs_embeds",
                "exactly one of them",
                "leave one out",
            )
        if output_attentions and self.attn_implementation != "eager":
            raise RequestError(
                f"output_attentions with attention '{self.attn_implementation}'",
                "attention 'eager', the one that has the weights",
                "load the model with attn_implementation='eager'",
            )
        x_BSE = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        assert x_BSE is not None
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache()
        if position_ids is None:
            if cache_position is None:
                past = past_key_values.get_seq_length() if past_key_values is not None else 0
                cache_position = torch.arange(x_BSE.shape[1], device=x_BSE.device) + past
            position_ids = cache_position.unsqueeze(0)
        mask = causal_mask(x_BSE, attention_mask, past_key_values, position_ids, self.attn_implementation)
        rotary = self.rotary_emb(x_BSE, position_ids)
        states, attentions = [x_BSE], []
        for layer in self.layers:
            x_BSE, weights = layer(x_BSE, rotary, mask, past_key_values)
            states.append(x_BSE)
            attentions.append(weights)
        x_BSE = self.norm(x_BSE)
        states[-1] = x_BSE
        return BaseModelOutputWithPast(
            last_hidden_state=x_BSE,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


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
    ) -> CausalLMOutputWithPast:
        """The reference path; arguments as :meth:`NemotronModel.forward`, and:

        Args:
            labels: [B, S], -100 where no loss is wanted; the loss is next-token cross-entropy in fp32.
            logits_to_keep: logits for the last so many positions (0: all); or for the positions given as [K], as [B, K],
                or as a boolean [B, S], which flattens rows and positions to one axis.
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
        )
        logits = self.lm_head(_keep_positions(out.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1).to(logits.device)
            loss = F.cross_entropy(logits.float().view(-1, self.config.vocab_size), shifted, ignore_index=-100)
        return CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)

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
