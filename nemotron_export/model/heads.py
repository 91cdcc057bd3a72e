"""Classification heads over the base model: sequences, tokens, answer spans.

Shapes: B sequences, S new tokens, C classes, E hidden_size.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict, Unpack

import torch
from nemotron_errors import RequestError
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.cache import Cache
from nemotron_export.model.losses import classification_loss, span_loss, token_loss
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.outputs import (
    BaseModelOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
    finish,
)
from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = [
    "BackboneOptions",
    "NemotronForQuestionAnswering",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
]

_DEFAULT_CLASSIFIER_DROPOUT = 0.1


class BackboneOptions(TypedDict, total=False):
    """Options that every head passes to :meth:`NemotronModel.forward` as they are."""

    output_attentions: bool | None
    output_hidden_states: bool | None
    cache_position: torch.Tensor | None


class _NemotronWithHead(NemotronPreTrainedModel):
    """A base model and one projection over its last hidden state."""

    def __init__(
        self, config: NemotronConfig, attn_implementation: str, head: str, classes: int, *, bias: bool
    ) -> None:
        super().__init__(config, attn_implementation)
        setattr(self, self.base_model_prefix, NemotronModel(config, attn_implementation))
        projection = nn.Linear(config.hidden_size, classes, bias=bias)
        nn.init.normal_(projection.weight, 0.0, config.initializer_range)
        if bias:
            nn.init.zeros_(projection.bias)
        setattr(self, head, projection)
        self._head_name = head

    def head(self, hidden_BSE: torch.Tensor) -> torch.Tensor:
        return getattr(self, self._head_name)(hidden_BSE)

    def _hidden(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.Tensor | None,
        use_cache: bool | None,
        options: BackboneOptions,
    ) -> tuple[BaseModelOutputWithPast, torch.Tensor]:
        out = self.base_model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **options,
        )
        return out, out.last_hidden_state


class NemotronForSequenceClassification(_NemotronWithHead):
    """One class, number or set of labels per sequence, from its right-most token that is no padding.

    ``score`` has no bias.
    """

    task = "sequence-classification"
    score: nn.Linear

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation, "score", config.num_labels, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[BackboneOptions],
    ) -> SequenceClassifierOutputWithPast:
        """Arguments as :meth:`NemotronModel.forward`, and labels as :func:`classification_loss` takes them.

        Returns:
            Logits [B, C]. With inputs_embeds, padding cannot be seen, and the last token is pooled.

        Raises:
            RequestError: several sequences without a pad token in the config.
        """
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out, hidden_BSE = self._hidden(*inputs, options)
        logits_BSC = self.head(hidden_BSE)
        each = torch.arange(len(logits_BSC), device=logits_BSC.device)
        pooled_BC = logits_BSC[each, self._pooled(input_ids, logits_BSC)]
        loss = None
        if labels is not None:
            loss = classification_loss(pooled_BC, labels, self.config.extra.get("problem_type"))
        result = SequenceClassifierOutputWithPast(
            loss, pooled_BC, out.past_key_values, out.hidden_states, out.attentions
        )
        return finish(result, return_dict, self.config)

    def _pooled(self, input_ids: torch.Tensor | None, logits_BSC: torch.Tensor) -> torch.Tensor | int:
        pad = self.config.pad_token_id
        if pad is None and len(logits_BSC) != 1:
            raise RequestError(
                f"{len(logits_BSC)} rows and no pad_token_id in the config",
                "a pad token, which tells where a row ends",
                "set config.pad_token_id, or send one row at a time",
            )
        if pad is None or input_ids is None:
            return -1
        position_S = torch.arange(input_ids.shape[-1], device=logits_BSC.device, dtype=torch.int32)
        return (position_S * input_ids.ne(pad).to(logits_BSC.device, torch.int32)).argmax(-1)


class NemotronForTokenClassification(_NemotronWithHead):
    """A class per token: dropout (``classifier_dropout``, 0.1), then ``score`` with a bias."""

    task = "token-classification"
    score: nn.Linear

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation, "score", config.num_labels, bias=True)
        given = (config.extra.get(name) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((p for p in given if p is not None), _DEFAULT_CLASSIFIER_DROPOUT))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[BackboneOptions],
    ) -> TokenClassifierOutput:
        """Arguments as :meth:`NemotronModel.forward`, and labels [B, S]. Logits are [B, S, C]."""
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out, hidden_BSE = self._hidden(*inputs, options)
        logits_BSC = self.head(self.dropout(hidden_BSE))
        loss = None if labels is None else token_loss(logits_BSC, labels)
        result = TokenClassifierOutput(loss, logits_BSC, out.hidden_states, out.attentions)
        return finish(result, return_dict, self.config)


class NemotronForQuestionAnswering(_NemotronWithHead):
    """Start and end of an answer's span; the base model's prefix is ``transformer``."""

    task = "question-answering"
    base_model_prefix: ClassVar[str] = "transformer"
    qa_outputs: nn.Linear

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation, "qa_outputs", 2, bias=True)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[BackboneOptions],
    ) -> QuestionAnsweringModelOutput:
        """Arguments as :meth:`NemotronModel.forward`, and the span's positions [B]. Logits are [B, S] each."""
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out, hidden_BSE = self._hidden(*inputs, options)
        start_BS1, end_BS1 = self.head(hidden_BSE).split(1, dim=-1)
        start_BS, end_BS = start_BS1.squeeze(-1).contiguous(), end_BS1.squeeze(-1).contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_BS, end_BS, start_positions, end_positions)
        result = QuestionAnsweringModelOutput(loss, start_BS, end_BS, out.hidden_states, out.attentions)
        return finish(result, return_dict, self.config)
