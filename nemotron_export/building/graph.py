"""Config and weight index → the target's graphs."""

from __future__ import annotations

from collections.abc import Collection

import torch
from nemotron_graphs.targets import LoweringContext, Target
from nemotron_graphs.targets.lowering import Lowered, lower
from nemotron_graphs.targets.record import OnStage
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.weight_files import WEIGHTS_FOLDER
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model import rope_tables
from nemotron_export.quantization.layout import QuantizedLayout
from nemotron_export.tracing import trace

__all__ = ["make_graphs"]


def make_graphs(
    checkpoint: Checkpoint,
    target: Target,
    dtype: str,
    limits: Limits,
    *,
    weights_mode: str = "reference",
    fp32_mlp_layers: Collection[int] = (),
    quantized: QuantizedLayout | None = None,
    on_stage: OnStage | None = None,
) -> Lowered:
    """Traces the model in the run dtype and lowers it; no weight is read.

    Args:
        limits: RoPE tables have ``max_seq_len`` rows.
        weights_mode: where the weights will be; see :func:`place_weights`.
        quantized: weights that the graphs take in another format.
        fp32_mlp_layers: layers whose MLP computes in fp32 after its first projection.
        on_stage: told of every graph after each pass.

    Raises:
        GraphError: RoPE types that such a length does not allow, a model that the target cannot run, or weights that
            are stored in another dtype than an engine reads.
    """
    cos_Ph, sin_Ph = rope_tables(checkpoint.config, limits.max_seq_len, torch.float32)
    context = LoweringContext(
        weights=checkpoint.tensors if quantized is None else {**checkpoint.tensors, **quantized.entries},
        cos=cos_Ph.numpy(),
        sin=sin_Ph.numpy(),
        weights_folder=WEIGHTS_FOLDER if weights_mode in ("link", "copy") else "",
        encoded={} if quantized is None else quantized.encoded,
        fp32_mlp_layers=len(fp32_mlp_layers),
        chooses_tokens=checkpoint.task == "causal-lm",
    )
    dialect = trace(checkpoint.config, getattr(torch, dtype), checkpoint.task, fp32_mlp_layers)
    return lower(target, dialect, context, on_stage)
