"""The heads over the base model: next tokens, classes of sequences and of tokens, answer spans.

Shapes: B sequences, S new tokens, K positions that get logits, C classes, E hidden_size, V vocab_size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nemotron_errors import RequestError
from torch import nn

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.cache import Cache
from nemotron_export.model.generation import generate
from nemotron_export.model.losses import causal_lm_loss, classification_loss, span_loss, token_loss
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.outputs import (
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
    finish,
)
from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = [
    "NemotronForCausalLM",
    "NemotronForQuestionAnswering",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
]

_DEFAULT_CLASSIFIER_DROPOUT = 0.1


class _NemotronWithHead(NemotronPreTrainedModel):
    """A base model and one projection over its last hidden state.

    Every forward takes the arguments of :meth:`NemotronModel.forward`; the rarer ones are its ``options``.
    """

    def __init__(
        self, config: NemotronConfig, attn_implementation: str, head: str, outputs: int, *, bias: bool
    ) -> None:
        super().__init__(config, attn_implementation)
        setattr(self, self.base_model_prefix, NemotronModel(config, attn_implementation))
        projection = nn.Linear(config.hidden_size, outputs, bias=bias)
        nn.init.normal_(projection.weight, 0.0, config.initializer_range)
        if bias:
            nn.init.zeros_(projection.bias)
        setattr(self, head, projection)
        self._head_name = head

    def head(self, hidden_BSE: torch.Tensor) -> torch.Tensor:
        return getattr(self, self._head_name)(hidden_BSE)


def _keep_positions(hidden_BSE: torch.Tensor, kept: int | torch.Tensor) -> torch.Tensor:
    if isinstance(kept, int):
        return hidden_BSE[:, -kept:]
    if kept.ndim == 1:
        return hidden_BSE[:, kept]
    if kept.dtype == torch.bool:
        return hidden_BSE[kept]
    return torch.take_along_dim(hidden_BSE, kept.unsqueeze(-1), dim=1)


class NemotronForCausalLM(_NemotronWithHead):
    """The language model: base model and lm_head (no bias), tied to the embedding where the config says so."""

    task = "causal-lm"
    model: NemotronModel
    lm_head: nn.Linear

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation, "lm_head", config.vocab_size, bias=False)
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
        *,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, V], or those of the positions to keep.

        Args:
            labels: [B, S], -100 where no loss is wanted; the loss is next-token cross-entropy in fp32.
            logits_to_keep: logits for the last so many positions (0: all); or for the positions given as [K], as
                [B, K], or as a boolean [B, S], which flattens sequences and positions to one axis.
        """
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out = self.model(*inputs, **options, return_dict=True)
        logits = self.head(_keep_positions(out.last_hidden_state, logits_to_keep))
        loss = None if labels is None else causal_lm_loss(logits, labels)
        result = CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
        return finish(result, return_dict, self.config)

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **params: Any
    ) -> torch.Tensor:
        """Continues each sequence by the runtime's loop; see :func:`nemotron_export.model.generation.generate`."""
        return generate(self, input_ids, attention_mask, **params)


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
        *,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Labels are as :func:`classification_loss` takes them.

        Returns:
            Logits [B, C]. With inputs_embeds, padding cannot be seen, and the last token is pooled.

        Raises:
            RequestError: several sequences without a pad token in the config.
        """
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out = self.base_model(*inputs, **options, return_dict=True)
        logits_BSC = self.head(out.last_hidden_state)
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
        *,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> TokenClassifierOutput:
        """Logits [B, S, C] and, of labels [B, S], a loss."""
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out = self.base_model(*inputs, **options, return_dict=True)
        logits_BSC = self.head(self.dropout(out.last_hidden_state))
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
        *,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> QuestionAnsweringModelOutput:
        """Logits [B, S] of starts and of ends and, of the span's positions [B], a loss."""
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        out = self.base_model(*inputs, **options, return_dict=True)
        start_BS1, end_BS1 = self.head(out.last_hidden_state).split(1, dim=-1)
        start_BS, end_BS = start_BS1.squeeze(-1).contiguous(), end_BS1.squeeze(-1).contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_BS, end_BS, start_positions, end_positions)
        result = QuestionAnsweringModelOutput(loss, start_BS, end_BS, out.hidden_states, out.attentions)
        return finish(result, return_dict, self.config)
