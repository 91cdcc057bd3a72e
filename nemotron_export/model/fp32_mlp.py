"""Layers whose MLP computes in fp32 after its first projection, and which of them must."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch

from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = ["LARGEST_RECTIFIED", "rectified_maxima", "set_fp32_mlp"]

# Its square is a quarter of the largest fp16 number (65504): other inputs than those measured may go as much higher.
LARGEST_RECTIFIED = 128.0


def set_fp32_mlp(model: NemotronPreTrainedModel, layers: Collection[int]) -> None:
    """Sets which layers compute the square and ``down_proj`` in fp32; the others do not."""
    for index, layer in enumerate(model.base_model.layers):
        layer.mlp.fp32 = index in layers


@torch.inference_mode()
def rectified_maxima(model: NemotronPreTrainedModel, prompts: Iterable[np.ndarray]) -> list[float]:
    """The largest relu(up_proj(x)) of each layer over some prompts.

    Args:
        model: in fp32, where no square overflows.
        prompts: token ids, int64 [n] each.
    """
    assert model.dtype == torch.float32
    layers = model.base_model.layers
    maxima = [0.0] * len(layers)

    def keep(index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
            maxima[index] = max(maxima[index], float(output.max()))

        return hook

    handles = [layer.mlp.up_proj.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        for ids in prompts:
            model.base_model(torch.from_numpy(ids)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return maxima
