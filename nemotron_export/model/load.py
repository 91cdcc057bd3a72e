"""A checkpoint's tensors into the reference model, one at a time, out of mapped safetensors."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from nemotron_errors import CheckpointError

from nemotron_export.model.causal import NemotronForCausalLM
from nemotron_export.model.heads import (
    NemotronForQuestionAnswering,
    NemotronForSequenceClassification,
    NemotronForTokenClassification,
)
from nemotron_export.model.modeling import NemotronModel
from nemotron_export.model.pretrained import NemotronPreTrainedModel

if TYPE_CHECKING:
    from nemotron_export.checkpoint import Checkpoint, TensorEntry

__all__ = ["MODEL_CLASSES", "load_model", "load_task_model"]

# task → class; each takes (config, attn_implementation)
MODEL_CLASSES: dict[str, type[NemotronPreTrainedModel]] = {
    "causal-lm": NemotronForCausalLM,
    "feature-extraction": NemotronModel,
    "sequence-classification": NemotronForSequenceClassification,
    "token-classification": NemotronForTokenClassification,
    "question-answering": NemotronForQuestionAnswering,
}

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


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
        The model in eval mode. Memory: one copy of the weights in ``dtype``, and one tensor more at a time.

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
    files: dict[str, mmap.mmap] = {}
    state: dict[str, torch.Tensor] = {}
    for name, entry in checkpoint.tensors.items():
        if entry.file not in files:
            files[entry.file] = _map(checkpoint.directory / entry.file)
        state[name] = _read(entry, files[entry.file], dtype, device)
    if checkpoint.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    # load_state_dict made one parameter per name
    model.tie_weights()
    return model.eval()


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        # private pages: torch wants a writable buffer, and nothing here reaches the file
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _read(entry: TensorEntry, file: mmap.mmap, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    stored = _DTYPES[entry.dtype]
    count = math.prod(entry.shape)
    if len(file) < entry.offset + entry.length:
        raise CheckpointError(
            f"{len(file)} bytes",
            f"at least {entry.offset + entry.length}, as when the checkpoint was opened",
            "leave the files alone while they are read, and open the checkpoint again",
            where=f"{entry.file}: {entry.name}",
        )
    mapped = torch.frombuffer(file, dtype=stored, count=count, offset=entry.offset).view(entry.shape)
    # A copy, never a view: BLAS results may depend on alignment, and safetensors' offsets have any.
    tensor = torch.empty(entry.shape, dtype=dtype, device=device).copy_(mapped)
    if dtype == torch.float16 and stored != torch.float16 and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"values up to {mapped.abs().max().item():.4g} in {entry.dtype}",
            "values that float16 holds (up to 65504)",
            "run in bfloat16 or float32",
            where=f"{entry.file}: {entry.name}",
        )
    return tensor
