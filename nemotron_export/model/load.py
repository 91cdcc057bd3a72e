"""The model class of each task, filled with a checkpoint's weights."""

from __future__ import annotations

import torch

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.heads import (
    NemotronForCausalLM,
    NemotronForQuestionAnswering,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
)
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = ["MODEL_CLASSES", "load_model"]

MODEL_CLASSES: dict[str, type[NemotronPreTrainedModel]] = {
    cls.task: cls
    for cls in (
        NemotronForCausalLM,
        NemotronModel,
        NemotronForSequenceClassification,
        NemotronForTokenClassification,
        NemotronForQuestionAnswering,
    )
}


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype, attn_implementation: str = "sdpa", device: str | torch.device = "cpu"
) -> NemotronPreTrainedModel:
    """The model of the task that the checkpoint was opened for; see :meth:`NemotronPreTrainedModel.from_checkpoint`."""
    return MODEL_CLASSES[checkpoint.task].from_checkpoint(checkpoint, dtype, attn_implementation, device)
