"""What forwards return: fields by name, by index and as a tuple, as users of Hugging Face expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch

from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.cache import Cache

__all__ = [
    "BaseModelOutputWithPast",
    "CausalLMOutputWithPast",
    "ModelOutput",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
    "finish",
]


class ModelOutput:
    """Fields that are None do not count for indices and iteration."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, in order."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(v for v in values if v is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Output of the base model."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Output of the causal language model."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SequenceClassifierOutputWithPast(CausalLMOutputWithPast):
    """Output of the sequence classifier."""


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Output of the extractive question answerer."""

    loss: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Output of the token classifier."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


Output = TypeVar("Output", bound=ModelOutput)


def finish(output: Output, return_dict: bool | None, config: NemotronConfig) -> Output:
    """The output, or its tuple where ``return_dict`` is False (the config's choice where None).

    Typed as the output alone: who asks for a tuple knows it.
    """
    wanted = config.extra.get("return_dict", True) if return_dict is None else return_dict
    return output if wanted else cast(Any, output.to_tuple())
