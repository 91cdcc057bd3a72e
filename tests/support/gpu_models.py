"""Small random models for the GPU tests, on disk and eager on the GPU.

Shapes: S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronForCausalLM
from nemotron_export.model.load import load_model
from nemotron_export.parity.device import true_fp32

__all__ = ["COMMON", "eager_logits", "eager_pair", "write_random"]

COMMON: dict[str, Any] = {
    "model_type": "nemotron", "architectures": ["NemotronForCausalLM"], "vocab_size": 320, "num_hidden_layers": 2,
    "norm_eps": 1e-5, "hidden_act": "relu2", "tie_word_embeddings": False, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def write_random(folder: Path, dtype: str, projections: float = 0.1, **config: Any) -> Path:
    """A checkpoint of :data:`COMMON` and what is given.

    Args:
        folder: where it goes.
        dtype: what it is stored in.
        projections: standard deviation of the projections' weights.
        config: keys of its config.
    """
    torch.manual_seed(0)
    model = NemotronForCausalLM(NemotronConfig.from_dict({**COMMON, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # norms at their defaults would hide a wrong gamma or bias, small projections a wrong attention
            table = "embed_tokens" in name or "lm_head" in name
            parameter.normal_(0.0, 0.3 if "norm" in name or "bias" in name else 0.08 if table else projections)
    return model.to(getattr(torch, dtype)).save_pretrained(folder)


@contextmanager
def eager_pair(checkpoint: Path, dtype: str) -> Iterator[tuple[NemotronForCausalLM, NemotronForCausalLM]]:
    """PyTorch's models on the GPU, in fp32 and in ``dtype``; their memory is free again afterwards."""
    opened = Checkpoint.open(checkpoint)
    models = [load_model(opened, each, "sdpa", "cuda") for each in (torch.float32, getattr(torch, dtype))]
    try:
        yield models[0], models[1]
    finally:
        for model in models:
            model.to("meta")
        models.clear()
        torch.cuda.empty_cache()


@torch.inference_mode()
def eager_logits(model: NemotronForCausalLM, prompt: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Logits of every position [S, V], products in fp32 where the model is in it."""
    with true_fp32("cuda"):
        return model(torch.from_numpy(prompt).cuda()[None]).logits[0].double().cpu().numpy()
