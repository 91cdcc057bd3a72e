"""`build`: every step from a checkpoint to a bundle, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError, RequestError
from nemotron_graphs.targets import LoweredGraph, Target, get_target
from nemotron_runtime.bundle.folder import write_manifest
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest import Manifest, QuantizationRecord, RTXRecord, TensorRTRecord
from nemotron_runtime.checks.reference import REFERENCE_FILE, write_reference

from nemotron_export.building.engines import EngineOptions, find_builder, plan_target_engines, write_target_engines
from nemotron_export.building.files import copy_small_files, describe_files, manifest_document
from nemotron_export.building.genai import check_genai_request, is_genai, write_genai_config
from nemotron_export.building.graph import make_graph
from nemotron_export.building.limits import choose_limits
from nemotron_export.building.preflight import EMBEDDING_COPIES, check_resources, estimate
from nemotron_export.building.tensorrt import EnginePlan
from nemotron_export.building.tensorrt_rtx import RTXPlan
from nemotron_export.building.weights import EMBEDDED, choose_weight_mode, place_weights
from nemotron_export.building.wide import choose_wide_layers
from nemotron_export.checkpoint import Checkpoint, ScanReport, scan
from nemotron_export.files.workspace import check_output, staging
from nemotron_export.installation.extras import require
from nemotron_export.parity.device import default_device
from nemotron_export.parity.failure import ParityFailedError
from nemotron_export.parity.heldout import HeldOut, held_out_texts
from nemotron_export.parity.memory import choose_reference
from nemotron_export.parity.reference import reference_for
from nemotron_export.parity.verdict import verify_bundle
from nemotron_export.progress import Progress, silent
from nemotron_export.quantization import QuantizedLayout, choose_scheme, lay_out, write_quantized

__all__ = ["build"]


@dataclass(frozen=True)
class _Plan:
    checkpoint: Checkpoint
    target: Target
    dtype: str
    limits: Limits
    weights: str
    reference: str
    quantized: QuantizedLayout | None
    held_out: HeldOut | None
    engines: EnginePlan | RTXPlan | None


def build(
    checkpoint: str | Path,
    output: str | Path,
    *,
    target: str = "ort-cpu",
    task: str | None = None,
    dtype: str | None = None,
    max_seq_len: int | None = None,
    max_batch: int | None = None,
    prefill_chunk: int | None = None,
    weights: str | None = None,
    parity: bool = True,
    reference: str = "auto",
    reference_steps: int | None = None,
    quantize: str | None = None,
    group_size: int | None = None,
    eval_text: str | Path | None = None,
    architectures: Sequence[str] = (),
    plugins: bool = True,
    embed_weights: bool = False,
    allow_cpu_nodes: bool = False,
    scan: bool = True,
    overwrite: bool = False,
    keep_failed: bool = False,
    revision: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Builds a bundle.

    Args:
        checkpoint: a folder with config.json and .safetensors files, or a hub id (`organisation/name`).
        output: the bundle's folder, which must not exist (or be a bundle, with `overwrite`).
        target: a name from `nemotron_graphs.targets.TARGETS`.
        task: "causal-lm", "sequence-classification", "token-classification", "question-answering" or
            "feature-extraction"; what the config's architecture says by default.
        dtype: run dtype; the target's first by default.
        max_seq_len: prompt and new tokens together.
        max_batch: rows at once.
        prefill_chunk: prompt tokens computed at once.
        weights: "reference" (stay where they are), "link" (hard links in the bundle) or "copy"; by default the first
            that the target takes.
        parity: make the reference and check the bundle against it; without, the bundle is pending.
        reference: "whole", "layerwise" (one layer in memory at a time), or "auto": layer by layer where the memory
            available does not hold the fp32 model.
        reference_steps: greedy tokens behind each prompt of the reference; 64 with the whole model, 8 layer by layer.
        quantize: "int8" or "int4": weight-only quantization of the projections and lm_head, judged by perplexity.
        group_size: 32, 64 or 128 weights that share a scale; by default 128 for int8 and 32 for int4.
        eval_text: a text file to measure the perplexity on; by default `eval.txt` beside the checkpoint, or a fixed
            English text.
        architectures: GPU architectures ("sm_80", …): beside this machine's, those that a tensorrt bundle has kernels
            for; those that the engines of a tensorrt-rtx bundle are for.
        plugins: whether a tensorrt bundle computes with the project's own kernels, or with layers of TensorRT 10.15.
        embed_weights: whether a tensorrt bundle's engines hold the weights, once in each, and need no weights file; by
            default both take those of the checkpoint as inputs.
        allow_cpu_nodes: whether an ort-cuda bundle may have nodes that ONNX Runtime computes on the CPU; slower.
        scan: read every weight once for NaN, Inf and chunk hashes; without, loading cannot check contents.
        overwrite: replace a bundle at `output`, once the new one is whole.
        keep_failed: keep, as pending, a bundle that fails its parity; the error is raised all the same.
        revision: a branch, tag or commit of a hub id.
        progress: told (stage, done, total).

    Returns:
        The bundle's folder.

    Raises:
        ParityFailedError: the numbers differ; holds the report.
        NemotronError: a broken checkpoint, an option that makes no sense, too little disk or memory, …
    """
    place = Path(output).absolute()
    check_output(place, overwrite=overwrite)
    chosen = get_target(target).allowing_cpu_nodes() if allow_cpu_nodes else get_target(target)
    options = EngineOptions(architectures, plugins, embed_weights)
    builder = find_builder(chosen, options, parity)
    if parity and builder is None:
        require("onnxruntime", "which runs the bundle for its parity check (or build with --no-parity)")
    progress("open checkpoint", 0, 0)
    plan = _plan(
        Checkpoint.resolve(checkpoint, revision),
        place,
        chosen,
        task,
        dtype,
        (max_seq_len, max_batch, prefill_chunk),
        weights,
        parity,
        reference,
        (quantize, group_size, eval_text),
        (builder, options),
    )
    failed: ParityFailedError | None = None
    with staging(place, overwrite=overwrite) as folder:
        scanned = _scan(plan, progress) if scan else None
        _write(plan, folder, scanned, parity, reference_steps, progress)
        if parity:
            report = verify_bundle(folder, judged_by="build", progress=progress)
            if not report.passed:
                failed = ParityFailedError(report, str(place))
                if not keep_failed:
                    raise failed
    if failed is not None:
        raise failed
    return place


def _plan(
    source: Path,
    place: Path,
    target: Target,
    task: str | None,
    dtype: str | None,
    limits: tuple[int | None, int | None, int | None],
    weights: str | None,
    parity: bool,
    reference: str,
    quantization: tuple[str | None, int | None, str | Path | None],
    engine_builder: tuple[Any, EngineOptions],
) -> _Plan:
    builder, options = engine_builder
    mode = choose_weight_mode(weights, target, options.embed_weights)
    if dtype is not None:
        target.check_dtype(dtype)
    opened = Checkpoint.open(source, task=task)
    # engines read the weights as they are stored
    as_stored = (builder or target.stored_dtype_first) and opened.dtype in target.dtypes
    stored = opened.dtype if as_stored else target.dtypes[0]
    run_dtype = stored if dtype is None else dtype
    check_genai_request(target, opened.task, parity)
    if opened.directory.resolve().is_relative_to(place.resolve()):
        raise BundleError(
            "the checkpoint inside the output", "two separate folders", "choose another --output", where=str(place)
        )
    chosen = choose_limits(opened.config, *limits)
    quantize, group_size, eval_text = quantization
    scheme = choose_scheme(quantize, group_size, target)
    quantized = None if scheme is None else lay_out(opened, scheme)
    if eval_text is not None and not (quantized and parity):
        found, remedy = "a text and no perplexity to measure", "add --quantize, and leave --no-parity out"
        raise RequestError(found, "a quantized bundle that is judged", remedy, where="--eval-text")
    engines = plan_target_engines(builder, opened, run_dtype, chosen, options)
    held_out = None
    if parity:
        reference = choose_reference(reference, opened.config, opened.num_parameters)
        if quantized is not None:
            held_out = held_out_texts(opened, chosen.max_seq_len, eval_text, mode=reference)
    needed = estimate(
        opened.config,
        num_parameters=opened.num_parameters,
        stored_bytes=opened.num_bytes,
        run_dtype=run_dtype,
        slots=chosen.max_seq_len,
        rows=min(chosen.max_batch, 4),
        weights_mode=mode,
        parity=parity,
        reference=reference,
        quantized_bytes=0 if quantized is None else quantized.size,
    )
    if engines is not None:
        # those are on the GPU; an engine that holds the weights is made and written on the host
        needed = replace(needed, weights=EMBEDDING_COPIES * opened.num_bytes if mode == EMBEDDED else 0, caches=0)
    check_resources(needed, place)
    return _Plan(opened, target, run_dtype, chosen, mode, reference, quantized, held_out, engines)


def _scan(plan: _Plan, progress: Progress) -> ScanReport:
    return scan(plan.checkpoint, progress=lambda done, total: progress("scan weights", done, total))


def _write(
    plan: _Plan,
    folder: Path,
    scanned: ScanReport | None,
    parity: bool,
    reference_steps: int | None,
    progress: Progress,
) -> None:
    wide = choose_wide_layers(
        plan.checkpoint, plan.dtype, plan.limits.max_seq_len, measure=parity, mode=plan.reference, progress=progress
    )
    progress("trace and lower", 0, 0)
    lowered, engines = _lower(plan, wide.layers, folder, progress)
    copy_small_files(plan.checkpoint, folder)
    if is_genai(plan.target):
        write_genai_config(folder, plan.checkpoint, plan.limits, lowered)
    directory = place_weights(
        [shard.path for shard in plan.checkpoint.shards], folder, plan.weights,
        lambda done, total: progress("copy weights", done, total),
    )  # fmt: skip
    quantization = None if plan.quantized is None else _quantize(plan, plan.quantized, folder, progress)
    if parity:
        reference = reference_for(
            plan.checkpoint, plan.limits.max_seq_len, plan.dtype, progress,
            mode=plan.reference, greedy_steps=reference_steps, wide=wide.to_dict(),
            device=default_device(plan.target),
        )  # fmt: skip
        if plan.held_out is not None:
            reference = plan.held_out.add_to(reference, plan.checkpoint, plan.reference, progress)
        write_reference(folder / REFERENCE_FILE, reference)
    document = manifest_document(
        plan.checkpoint, plan.target, plan.dtype, plan.limits, lowered, scanned, wide_layers=wide.layers,
        weights_mode=plan.weights, weights_directory=directory, files=describe_files(folder),
        quantization=quantization, engines=engines,
    )  # fmt: skip
    if not parity:
        document["parity"]["reason"] = "built with --no-parity"
    write_manifest(folder, Manifest.from_dict(document))


def _lower(
    plan: _Plan, wide_layers: Sequence[int], folder: Path, progress: Progress
) -> tuple[LoweredGraph, dict[str, TensorRTRecord | RTXRecord]]:
    if plan.engines is not None:
        return write_target_engines(
            plan.engines, plan.target, plan.checkpoint, plan.dtype, plan.limits, wide_layers, folder, progress
        )
    lowered = make_graph(
        plan.checkpoint, plan.target, plan.dtype, plan.limits,
        weights_mode=plan.weights, wide_layers=wide_layers, quantized=plan.quantized,
    )  # fmt: skip
    lowered.save(folder / lowered.session["graph"])
    return lowered, {}


def _quantize(plan: _Plan, layout: QuantizedLayout, folder: Path, progress: Progress) -> QuantizationRecord:
    file = write_quantized(
        plan.checkpoint, layout, folder, lambda done, total: progress("quantize weights", done, total)
    )
    return layout.record(file)
