"""Config and weight index → the target's graph."""

from __future__ import annotations

from collections.abc import Collection

import torch
from nemotron_graphs.targets import LoweredGraph, LoweringContext, Target, add_candidates
from nemotron_graphs.targets.record import OnStage
from nemotron_graphs.targets.tensorrt import TensorRTGraphs, lower_tensorrt
from nemotron_graphs.targets.tensorrt_rtx import lower_native
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.weights import WEIGHTS_FOLDER
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model import rope_tables
from nemotron_export.quantization.layout import QuantizedLayout
from nemotron_export.tracing import trace

__all__ = ["make_graph", "make_tensorrt_graphs"]


def make_graph(
    checkpoint: Checkpoint,
    target: Target,
    dtype: str,
    limits: Limits,
    *,
    weights_mode: str = "reference",
    wide_layers: Collection[int] = (),
    quantized: QuantizedLayout | None = None,
    on_stage: OnStage | None = None,
) -> LoweredGraph:
    """Traces the model in the run dtype and lowers it; no weight is read.

    Args:
        checkpoint: an opened checkpoint.
        target: where the graph runs.
        dtype: run dtype.
        limits: RoPE tables have ``max_seq_len`` rows.
        weights_mode: where the weights will be; see :func:`place_weights`.
        quantized: weights that the graph takes as codes and scales.
        wide_layers: layers whose MLP computes in fp32 behind its first projection.
        on_stage: told of the graph after each pass.

    Raises:
        GraphError: RoPE types that such a length does not allow, or a model that the target cannot run.
    """
    context = _context(checkpoint, limits, weights_mode, quantized)
    dialect = trace(checkpoint.config, getattr(torch, dtype), checkpoint.task, wide_layers)
    lowered = target.lower(dialect, context, on_stage)
    chooses = target.candidates > 0 and checkpoint.task == "causal-lm"
    return add_candidates(lowered, target.candidates) if chooses else lowered


def make_tensorrt_graphs(
    checkpoint: Checkpoint, target: Target, dtype: str, limits: Limits, *, wide_layers: Collection[int] = (),
    native: bool = False,
) -> TensorRTGraphs:  # fmt: skip
    """Traces the model and lowers it to the two graphs of engines; arguments as of :func:`make_graph`.

    Args:
        native: TensorRT's own layers in place of plugins.

    Raises:
        GraphError: as :func:`make_graph`, or weights that are stored in another dtype than the run's.
    """
    context = _context(checkpoint, limits, "reference", None)
    dialect = trace(checkpoint.config, getattr(torch, dtype), checkpoint.task, wide_layers)
    return lower_native(dialect, context, target) if native else lower_tensorrt(dialect, context)


def _context(
    checkpoint: Checkpoint, limits: Limits, weights_mode: str, quantized: QuantizedLayout | None
) -> LoweringContext:
    cos_Ph, sin_Ph = rope_tables(checkpoint.config, limits.max_seq_len, torch.float32)
    folder = "" if weights_mode == "reference" else WEIGHTS_FOLDER
    weights, codes = checkpoint.tensors, {}
    if quantized is not None:
        weights, codes = {**weights, **quantized.entries}, quantized.weights
    return LoweringContext(weights, cos_Ph.numpy(), sin_Ph.numpy(), folder, codes)
