"""A checkpoint's tensors into the reference model, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nemotron_export.model.causal import NemotronForCausalLM
from nemotron_export.model.heads import (
    NemotronForQuestionAnswering,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
)
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.model.tensor_reader import TensorReader

if TYPE_CHECKING:
    from nemotron_export.checkpoint import Checkpoint

__all__ = ["MODEL_CLASSES", "load_model", "load_task_model"]

# task → class; each takes (config, attn_implementation)
MODEL_CLASSES: dict[str, type[NemotronPreTrainedModel]] = {
    "causal-lm": NemotronForCausalLM,
    "feature-extraction": NemotronModel,
    "sequence-classification": NemotronForSequenceClassification,
    "token-classification": NemotronForTokenClassification,
    "question-answering": NemotronForQuestionAnswering,
}


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
) -> NemotronForCausalLM:
    """Builds the causal model on the meta device and fills it.

    Args:
        checkpoint: an opened checkpoint of a causal model.
        dtype: what the model runs in; every tensor is cast to it, as transformers does.
        attn_implementation: "eager", "sdpa" or "flash_attention".
        device: where the weights go.

    Returns:
        The model in eval mode. Memory: one copy of the weights in ``dtype``.

    Raises:
        CheckpointError: a file that is shorter than when the checkpoint was opened, or weights that ``dtype`` cannot
            hold.
    """
    model = load_task_model(checkpoint, dtype, attn_implementation, device)
    assert isinstance(model, NemotronForCausalLM), "a checkpoint opened for the causal model"
    return model


def load_task_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
    device: str | torch.device = "cpu",
) -> NemotronPreTrainedModel:
    """:func:`load_model` for the class of the task that the checkpoint was opened for."""
    with torch.device("meta"):
        model = MODEL_CLASSES[checkpoint.task](checkpoint.config, attn_implementation)  # type: ignore[call-arg]
    with TensorReader(checkpoint.directory) as reader:
        state = {name: reader.tensor(entry, dtype, device) for name, entry in checkpoint.tensors.items()}
    if checkpoint.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    # load_state_dict made one parameter per name
    model.tie_weights()
    return model.eval()
