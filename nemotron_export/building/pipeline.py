"""`build`: every step from a checkpoint to a bundle, in order."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_runtime.bundle.folder import write_manifest
from nemotron_runtime.bundle.manifest import REFERENCE_FILE, Manifest
from nemotron_runtime.checks.reference import write_reference

from nemotron_export.building.builders import builder_for
from nemotron_export.building.fp32_mlp import Fp32MlpLayers, choose_fp32_mlp_layers
from nemotron_export.building.graph import make_graphs
from nemotron_export.building.plan import BuildPlan, make_plan
from nemotron_export.building.request import BuildRequest
from nemotron_export.building.small_files import copy_small_files, describe_files, manifest_document
from nemotron_export.building.weight_files import place_weights
from nemotron_export.checkpoint import Checkpoint, scan
from nemotron_export.files.workspace import check_output, staging
from nemotron_export.parity.device import default_device
from nemotron_export.parity.reference import reference_for
from nemotron_export.parity.verdict import ParityFailedError, verify_bundle
from nemotron_export.progress import Progress, silent
from nemotron_export.quantization import write_quantized

__all__ = ["build"]


def build(checkpoint: str | Path, output: str | Path, *, progress: Progress = silent, **options: Any) -> Path:
    """Builds a bundle.

    Args:
        checkpoint: a folder with config.json and .safetensors files, or a hub id (`organisation/name`).
        output: the bundle's folder, which must not exist (or be a bundle, with `overwrite`).
        progress: told (stage, done, total).
        options: fields of :class:`BuildRequest`: target, dtype, max_seq_len, …

    Returns:
        The bundle's folder.

    Raises:
        ParityFailedError: the numbers differ; holds the report.
        NemotronError: a broken checkpoint, an option that makes no sense, too little disk or memory, …
    """
    request = BuildRequest(**options)
    place = Path(output).absolute()
    check_output(place, overwrite=request.overwrite)
    builder = builder_for(request)
    builder.find()
    progress("open checkpoint", 0, 0)
    plan = make_plan(request, builder, Checkpoint.resolve(checkpoint, request.revision), place)
    failed: ParityFailedError | None = None
    with staging(place, overwrite=request.overwrite) as folder:
        _write(plan, folder, progress)
        if request.parity:
            report = verify_bundle(folder, judged_by="build", progress=progress)
            if not report.passed:
                failed = ParityFailedError(report, str(place))
                if not request.keep_failed:
                    raise failed
    if failed is not None:
        raise failed
    return place


def _write(plan: BuildPlan, folder: Path, progress: Progress) -> None:
    """Everything that the folder of a bundle holds, its parity still pending."""
    scanned = None
    if plan.request.scan:
        scanned = scan(plan.checkpoint, progress=lambda done, total: progress("scan weights", done, total))
    wide = choose_fp32_mlp_layers(
        plan.checkpoint, plan.dtype, plan.limits.max_seq_len,
        measure=plan.request.parity, mode=plan.reference, progress=progress,
    )  # fmt: skip
    progress("trace and lower", 0, 0)
    lowered = make_graphs(
        plan.checkpoint, plan.target, plan.dtype, plan.limits,
        weights_mode=plan.weights, fp32_mlp_layers=wide.layers, quantized=plan.quantized,
    )  # fmt: skip
    records = plan.builder.write(lowered, plan.checkpoint, plan.limits, folder, progress)
    copy_small_files(plan.checkpoint, folder)
    directory = place_weights(
        [shard.path for shard in plan.checkpoint.shards], folder, plan.weights,
        lambda done, total: progress("copy weights", done, total),
    )  # fmt: skip
    if plan.quantized is not None:
        file = write_quantized(
            plan.checkpoint, plan.quantized, folder, lambda done, total: progress("quantize weights", done, total)
        )
        records["quantization"] = asdict(plan.quantized.record(file))
    if plan.request.parity:
        _write_reference(plan, wide, folder, progress)
    reason = "not checked yet" if plan.request.parity else "built with --no-parity"
    document = manifest_document(plan, lowered, scanned, wide.layers, directory, describe_files(folder), reason)
    write_manifest(folder, Manifest.from_dict({**document, **records}))


def _write_reference(plan: BuildPlan, wide: Fp32MlpLayers, folder: Path, progress: Progress) -> None:
    reference = reference_for(
        plan.checkpoint, plan.limits.max_seq_len, plan.dtype, progress,
        mode=plan.reference, greedy_steps=plan.request.reference_steps, wide=wide.to_dict(),
        device=default_device(plan.target),
    )  # fmt: skip
    if plan.held_out is not None:
        reference = plan.held_out.add_to(reference, plan.checkpoint, plan.reference, progress)
    write_reference(folder / REFERENCE_FILE, reference)
