"""fp16: which layers' relu² would leave its range, and therefore computes in fp32."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from nemotron_errors import RequestError

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.fp32_mlp import LARGEST_RECTIFIED, rectified_maxima
from nemotron_export.model.load import load_model
from nemotron_export.parity.prompts import plan_prompts
from nemotron_export.parity.reference import encoder
from nemotron_export.progress import Progress

__all__ = ["Fp32MlpLayers", "choose_fp32_mlp_layers"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fp32MlpLayers:
    """The choice, and what it was made by.

    Attributes:
        layers: decoder layers whose square and ``down_proj`` are computed in fp32.
        maxima: the largest rectified value of each layer over the parity prompts; None where nothing was measured.
    """

    layers: tuple[int, ...] = ()
    maxima: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What the reference records; empty where the dtype holds any square."""
        if not self.layers and self.maxima is None:
            return {}
        return {"wide_layers": list(self.layers), "rectified_maxima": self.maxima and list(self.maxima)}


def choose_fp32_mlp_layers(
    checkpoint: Checkpoint, dtype: str, max_seq_len: int, *, measure: bool, mode: str, progress: Progress
) -> Fp32MlpLayers:
    """Measures the activations of a build in fp16; other dtypes hold any square.

    Without a measurement every layer is computed in fp32 there: the weights alone cannot tell.

    Args:
        max_seq_len: prompts stay within it.
        measure: whether PyTorch may run (a build with its parity check).
        mode: how the reference is made; "layerwise" leaves no model to measure.

    Raises:
        RequestError: fp16 for a model that does not fit into memory.
    """
    if dtype != "float16":
        return Fp32MlpLayers()
    layers = range(checkpoint.config.num_hidden_layers)
    if not measure:
        _log.warning("fp16 without a parity check: relu² and down_proj of all layers are computed in fp32")
        return Fp32MlpLayers(tuple(layers))
    if mode == "layerwise":
        raise RequestError(
            "float16 for a model that is larger than memory",
            "a model whose activations can be measured: relu² overflows fp16 where its input exceeds 255.9",
            "build in bfloat16 or float32, or on a machine with more memory",
            where="--dtype",
        )
    progress("measure activations, fp32", 0, 0)
    config = checkpoint.config
    plan = plan_prompts(config.vocab_size, max_seq_len, encoder(checkpoint.directory, config.vocab_size))
    maxima = rectified_maxima(load_model(checkpoint, torch.float32), plan.prompts)
    wide = tuple(index for index in layers if maxima[index] > LARGEST_RECTIFIED)
    if wide:
        _log.warning(
            "relu² of layers %s would come near fp16's range (inputs up to %.4g): computed in fp32",
            ", ".join(map(str, wide)),
            max(maxima),
        )
    return Fp32MlpLayers(wide, tuple(maxima))
