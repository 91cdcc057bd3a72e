"""What a user asks of a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BuildRequest"]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The options of a build; each field is an option of ``nemotron-export build`` and a keyword of ``build()``.

    Attributes:
        target: a name from ``nemotron_graphs.targets.TARGETS``.
        task: "causal-lm", "sequence-classification", "token-classification", "question-answering" or
            "feature-extraction"; what the config's architecture says by default.
        dtype: run dtype; the target's first by default.
        max_seq_len: prompt and new tokens together.
        max_batch: sequences at once.
        prefill_chunk: prompt tokens computed at once.
        weights: "reference" (stay where they are), "link" (hard links in the bundle) or "copy"; by default the first
            that the target takes.
        parity: make the reference and check the bundle against it; without, the bundle is pending.
        reference: "whole", "layerwise" (one layer in memory at a time), or "auto": layer by layer where the memory
            available does not hold the fp32 model.
        reference_steps: greedy tokens after each prompt of the reference; 64 with the whole model, 8 layer by layer.
        quantize: "int8" or "int4": weight-only quantization of the projections and lm_head, checked by perplexity.
        group_size: 32, 64 or 128 weights that share a scale; by default 128 for int8 and 32 for int4.
        eval_text: a text file to measure the perplexity on; by default ``eval.txt`` next to the checkpoint, or a fixed
            English text.
        architectures: GPU architectures ("sm_80", …): besides this machine's, those that a tensorrt bundle has kernels
            for; those that the engines of a tensorrt-rtx bundle are for.
        plugins: whether a tensorrt bundle computes with the project's own kernels, or with layers of TensorRT 10.15.
        embed_weights: whether a tensorrt bundle's engines hold the weights, once in each, and need no weights file; by
            default both take those of the checkpoint as inputs.
        allow_cpu_nodes: whether an ort-cuda bundle may have nodes that ONNX Runtime computes on the CPU; slower.
        scan: read every weight once for NaN, Inf and chunk hashes; without, loading cannot check contents.
        overwrite: replace a bundle at the output, once the new one is whole.
        keep_failed: keep, as pending, a bundle that fails its parity; the error is raised all the same.
        revision: a branch, tag or commit of a hub id.
    """

    target: str = "ort-cpu"
    task: str | None = None
    dtype: str | None = None
    max_seq_len: int | None = None
    max_batch: int | None = None
    prefill_chunk: int | None = None
    weights: str | None = None
    parity: bool = True
    reference: str = "auto"
    reference_steps: int | None = None
    quantize: str | None = None
    group_size: int | None = None
    eval_text: str | Path | None = None
    architectures: Sequence[str] = ()
    plugins: bool = True
    embed_weights: bool = False
    allow_cpu_nodes: bool = False
    scan: bool = True
    overwrite: bool = False
    keep_failed: bool = False
    revision: str | None = None
