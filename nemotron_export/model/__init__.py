"""The reference model: one module tree, two attention paths (``hf`` and ``dialect``)."""

from nemotron_export.model.cache import DynamicCache, StaticCache
from nemotron_export.model.modeling import NemotronForCausalLM, NemotronModel
from nemotron_export.model.rotary import rope_tables

__all__ = ["DynamicCache", "NemotronForCausalLM", "NemotronModel", "StaticCache", "rope_tables"]
