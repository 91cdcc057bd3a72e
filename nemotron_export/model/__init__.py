"""The reference model: one module tree, two attention paths (``hf`` and ``dialect``)."""

from nemotron_export.model.cache import DynamicCache, StaticCache
from nemotron_export.model.heads import (
    NemotronForCausalLM,
    NemotronForQuestionAnswering,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
)
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.model.rotary import rope_tables

__all__ = [
    "DynamicCache",
    "NemotronForCausalLM",
    "NemotronForQuestionAnswering",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
    "NemotronModel",
    "NemotronPreTrainedModel",
    "StaticCache",
    "rope_tables",
]
