"""Config and weight index → the target's graph."""

from __future__ import annotations

import numpy as np
import torch
from nemotron_graphs.targets import LoweredGraph, LoweringContext, Target
from nemotron_runtime.limits import Limits

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model import rope_tables
from nemotron_export.tracing import trace

__all__ = ["make_graph"]


def make_graph(checkpoint: Checkpoint, target: Target, dtype: str, limits: Limits) -> LoweredGraph:
    """Traces the model in the run dtype and lowers it; no weight is read."""
    cos_Ph, sin_Ph = rope_tables(checkpoint.config, limits.max_seq_len, torch.float32)
    context = LoweringContext(
        weights=checkpoint.tensors,
        cos=_with_padding(cos_Ph, limits.prefill_chunk),
        sin=_with_padding(sin_Ph, limits.prefill_chunk),
    )
    return target.lower(trace(checkpoint.config, getattr(torch, dtype), checkpoint.task), context)


def _with_padding(table_Ph: torch.Tensor, rows: int) -> np.ndarray:
    """A padded chunk may reach past max_seq_len: its padding looks up rows that nothing reads the result of."""
    return np.concatenate([table_Ph.numpy(), np.zeros((rows, table_Ph.shape[1]), np.float32)])
