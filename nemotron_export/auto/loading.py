"""Tokenizer and causal model from a folder or a hub id, and the device to put the model on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_export.auto.chat_template import PretrainedTokenizer
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.extras import require

if TYPE_CHECKING:  # torch, which the tokenizer does without
    from nemotron_export.model import NemotronForCausalLM

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "infer_device"]


class AutoTokenizer:
    """Loads a tokenizer; its one method stands where transformers has it."""

    @staticmethod
    def from_pretrained(
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> PretrainedTokenizer:
        """The tokenizer of a folder or a hub id (organisation/name).

        Args:
            path_or_id: a folder or a hub id.
            revision: a branch, tag or commit of a hub id.
            token: an access token for the hub; None takes the one stored at login.
            local_files_only: ask no server.

        Raises:
            CheckpointError: nothing of that name here or on the hub.
            TokenizerError: tokenizer files that are missing or broken.
        """
        return PretrainedTokenizer(
            Checkpoint.resolve(path_or_id, revision=revision, token=token, offline=local_files_only, weights=False)
        )


class AutoModelForCausalLM:
    """Loads the causal model; its one method stands where transformers has it."""

    @staticmethod
    def from_pretrained(path_or_id: str | Path, **options: Any) -> NemotronForCausalLM:
        """See :meth:`nemotron_export.model.NemotronPreTrainedModel.from_pretrained` for options and errors."""
        require("torch", "to run the reference model")
        from nemotron_export.model import NemotronForCausalLM

        return NemotronForCausalLM.from_pretrained(path_or_id, **options)


def infer_device() -> str:
    """The best device of this machine: "cuda", "mps" or "cpu"."""
    require("torch", "to find a device")
    from nemotron_export.model.placement import infer_device as infer

    return infer()
