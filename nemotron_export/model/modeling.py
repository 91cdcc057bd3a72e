"""The base model: embedding, decoder layers, final norm. State-dict keys are Hugging Face's.

Shapes: B sequences, S new tokens, E hidden_size.
"""

from __future__ import annotations

import torch
from nemotron_errors import RequestError
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.cache import Cache, DynamicCache
from nemotron_export.model.decoder import NemotronDecoderLayer
from nemotron_export.model.layernorm import LayerNorm1P
from nemotron_export.model.masks import causal_mask
from nemotron_export.model.outputs import BaseModelOutputWithPast, finish
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.model.rotary import RotaryEmbedding

__all__ = ["NemotronModel"]


class NemotronModel(NemotronPreTrainedModel):
    """Embedding, decoder layers, final norm."""

    task = "feature-extraction"

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation)
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
        *,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: torch.Tensor | None = None,
        return_dict: bool | None = None,
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
            return_dict: False gives a tuple.

        Flags that are None come from the config.

        Raises:
            RequestError: both or neither of input_ids and inputs_embeds; attentions asked of sdpa.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError(
                "both input_ids and inputs_embeds" if input_ids is not None else "neither input_ids nor inputs_embeds",
                "exactly one of them",
                "leave one out",
            )
        settings = self.config.extra
        if output_attentions is None:
            output_attentions = bool(settings.get("output_attentions", False))
        if output_hidden_states is None:
            output_hidden_states = bool(settings.get("output_hidden_states", False))
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
        out = BaseModelOutputWithPast(
            last_hidden_state=x_BSE,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return finish(out, return_dict, self.config)
