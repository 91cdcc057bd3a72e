"""Eager PyTorch with the whole model in memory: sequences after dynamic caches, each alone and in its own shapes.

Shapes: S new tokens, k positions with outputs, V outputs of the head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager

import torch

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.cache import DynamicCache
from nemotron_export.model.fp32_mlp import set_fp32_mlp
from nemotron_export.model.load import load_model
from nemotron_export.parity.layerwise import Feed, OnStep

__all__ = ["WholeModel"]


class WholeModel(AbstractContextManager["WholeModel"]):
    """A model of any task; its weights are gone at the end of the ``with`` block.

    Args:
        checkpoint: an opened checkpoint.
        dtype: what the model runs in.
        sequences: independent ones.
        device: "cpu" or "cuda".
        fp32_mlp_layers: layers whose MLP computes in fp32 after its first projection.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, sequences: int, device: str, fp32_mlp_layers: Collection[int]
    ) -> None:
        self._model = load_model(checkpoint, dtype, device=device)
        set_fp32_mlp(self._model, fp32_mlp_layers)
        self._caches = [DynamicCache() for _ in range(sequences)]

    def __exit__(self, *_: object) -> None:
        del self._model, self._caches

    @torch.inference_mode()
    def feed(self, feeds: Sequence[Sequence[Feed]], on_step: OnStep) -> list[list[torch.Tensor]]:
        """Feeds every sequence its tokens; gives outputs [k, V] of each feed, on the CPU."""
        total, done, device = sum(len(own) for own in feeds), 0, self._model.device
        outputs: list[list[torch.Tensor]] = []
        for cache, own in zip(self._caches, feeds, strict=True):
            outputs.append([])
            for feed in own:
                on_step(done, total)
                done += 1
                ids_1S = torch.from_numpy(feed.ids).to(device)[None]
                hidden = self._model.base_model(ids_1S, past_key_values=cache, use_cache=True).last_hidden_state
                at = torch.from_numpy(feed.positions).to(device)
                outputs[-1].append(self._model.head(hidden[:, at])[0].cpu())
        return outputs
