"""Export and deployment of NVIDIA's Nemotron models: checkpoint → graph → bundle → text, with a numeric proof."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron_runtime import load

    from nemotron_export.auto import AutoModelForCausalLM, AutoTokenizer, infer_device
    from nemotron_export.building import build
    from nemotron_export.checkpoint import Checkpoint
    from nemotron_export.config.config import NemotronConfig
    from nemotron_export.model import (
        NemotronForCausalLM,
        NemotronForQuestionAnswering,
        NemotronForSequenceClassification,
        NemotronForTokenClassification,
        NemotronModel,
        NemotronPreTrainedModel,
    )
    from nemotron_export.parity.check import check_parity

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "Checkpoint",
    "NemotronConfig",
    "NemotronForCausalLM",
    "NemotronForQuestionAnswering",
    "NemotronForSequenceClassification",
    "NemotronForTokenClassification",
    "NemotronModel",
    "NemotronPreTrainedModel",
    "__version__",
    "build",
    "check_parity",
    "infer_device",
    "load",
]

__version__ = "0.2.0"

# Loaded when asked for (PEP 562): `import nemotron_export` and the command line start without torch and onnx.
_HOMES = {
    "AutoModelForCausalLM": "nemotron_export.auto",
    "AutoTokenizer": "nemotron_export.auto",
    "Checkpoint": "nemotron_export.checkpoint",
    "NemotronConfig": "nemotron_export.config.config",
    "NemotronForCausalLM": "nemotron_export.model",
    "NemotronForQuestionAnswering": "nemotron_export.model",
    "NemotronForSequenceClassification": "nemotron_export.model",
    "NemotronForTokenClassification": "nemotron_export.model",
    "NemotronModel": "nemotron_export.model",
    "NemotronPreTrainedModel": "nemotron_export.model",
    "build": "nemotron_export.building",
    "check_parity": "nemotron_export.parity.check",
    "infer_device": "nemotron_export.auto",
    "load": "nemotron_runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
