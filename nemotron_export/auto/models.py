"""The causal model from a folder or a hub id, and the device to put it on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_export.installation.extras import require

if TYPE_CHECKING:
    import torch

    from nemotron_export.model import NemotronForCausalLM

__all__ = ["AutoModelForCausalLM", "infer_device"]


class AutoModelForCausalLM:
    """Loads the causal model; its one method stands where transformers has it."""

    @staticmethod
    def from_pretrained(
        path_or_id: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> NemotronForCausalLM:
        """See :func:`nemotron_export.model.pretrained_loading.from_pretrained` for arguments and errors."""
        require("torch", "to run the reference model")
        from nemotron_export.model import NemotronForCausalLM

        return NemotronForCausalLM.from_pretrained(
            path_or_id,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )


def infer_device() -> str:
    """The best device of this machine: "cuda", "mps" or "cpu"."""
    require("torch", "to find a device")
    from nemotron_export.model.pretrained_loading import infer_device as infer

    return infer()
