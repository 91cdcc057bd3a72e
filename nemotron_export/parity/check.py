"""`parity`: PyTorch computes a bundle's reference again, and both the stored reference and the bundle are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from nemotron_errors import BundleError, RequestError
from nemotron_graphs.targets import get_target
from nemotron_runtime.bundle.folder import Bundle, file_record, write_manifest
from nemotron_runtime.checks.perplexity import perplexity
from nemotron_runtime.checks.reference import REFERENCE_FILE, Reference, read_reference, write_reference
from nemotron_runtime.checks.report import ParityReport, ParityRow
from nemotron_runtime.checks.verification import check_bundle

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.parity.device import default_device
from nemotron_export.parity.heldout import held_out_texts, score_texts
from nemotron_export.parity.memory import choose_reference
from nemotron_export.parity.prompts import PromptPlan
from nemotron_export.parity.provider import check_runs_here
from nemotron_export.parity.reference import reference_for
from nemotron_export.parity.verdict import quiet_about_parity, record
from nemotron_export.progress import Progress, silent

__all__ = ["check_parity", "compare_references"]


def check_parity(
    bundle: str | Path,
    *,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    threads: int | None = None,
    reference: str = "auto",
    reference_steps: int | None = None,
    reference_device: str | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """Computes the reference again with torch, compares it with the stored one, checks the bundle, records it all.

    A bundle built without a reference gets one.

    Args:
        bundle: the bundle's folder, whatever its parity state.
        checkpoint: the checkpoint; the folder of the bundle's weights by default.
        weights_dir: where the weights are, if they were moved.
        threads: CPU threads of the bundle's session.
        reference: "whole", "layerwise" or "auto": how the reference is computed, see :func:`reference_for`.
        reference_steps: greedy tokens after each prompt, for a bundle that has no reference yet.
        reference_device: "cpu", "cuda" or "auto"; what :func:`default_device` says where None.
        progress: told (stage, done, total).

    Returns:
        The report; ask it whether it passed.

    Raises:
        BundleError: a broken bundle, or another checkpoint than the one that it was built from.
        CheckpointError: a checkpoint that does not load.
        MissingDependencyError: a bundle for ONNX Runtime on CUDA, where that does not start.
        RequestError: a folder for GenAI on CUDA, which the runtime does not run.
    """
    with quiet_about_parity():
        opened = Bundle.open(bundle, weights_dir=weights_dir, allow_unverified=True)
    # a reference may take minutes
    target = get_target(opened.manifest.target)
    check_runs_here(target, str(opened.directory), building=False)
    source = Checkpoint.open(
        opened.weights_directory if checkpoint is None else Path(checkpoint), task=opened.manifest.task
    )
    _check_same_weights(opened, source)
    stored = read_reference(opened.file(REFERENCE_FILE)) if REFERENCE_FILE in opened.manifest.files else None
    fresh = reference_for(
        source,
        opened.manifest.limits.max_seq_len,
        opened.manifest.dtype,
        progress,
        tokenizer_files=opened.directory,
        plan=None if stored is None else _plan_of(stored, reference_steps),
        mode=reference,
        greedy_steps=reference_steps,
        wide={"wide_layers": list(opened.manifest.model.fp32_mlp_layers)}
        if opened.manifest.model.fp32_mlp_layers
        else None,
        device=reference_device or default_device(target),
    )
    if opened.manifest.quantization is not None:
        fresh = _with_texts(fresh, stored, source, opened, reference, progress)
    if stored is None:
        _store(opened, fresh)
    with quiet_about_parity():
        report = check_bundle(bundle, weights_dir=weights_dir, threads=threads, progress=progress)
    if stored is not None:
        report = replace(report, rows=(*compare_references(stored, fresh), *report.rows))
    record(opened.directory, report, threads=threads, judged_by="parity")
    return report


def compare_references(stored: Reference, fresh: Reference) -> tuple[ParityRow, ...]:
    """Rows that say how far a stored reference is from a fresh one: the fp32 tolerance holds for it as well."""
    rows = []
    for old, new in zip(stored.prompts, fresh.prompts, strict=True):
        name = f"{len(old.ids)} tokens"
        if old.logits.shape != new.logits.shape or old.step_logits.shape != new.step_logits.shape:
            raise BundleError(
                f"reference logits of shape {list(old.logits.shape)}, {list(old.step_logits.shape)}",
                f"{list(new.logits.shape)}, {list(new.step_logits.shape)}",
                "build the bundle again with this version",
                where=REFERENCE_FILE,
            )
        pairs = ((old.logits, new.logits), (old.step_logits, new.step_logits))
        worst = float(np.max([np.abs(a - b).max() for a, b in pairs if a.size])) / fresh.logit_range
        wrong = int((old.greedy != new.greedy).sum())
        rows.append(ParityRow("stored reference, logits", name, worst, stored.tolerance, worst <= stored.tolerance))
        rows.append(ParityRow("stored reference, tokens differing", name, float(wrong), 0.0, wrong == 0))
    if stored.texts:
        ratio = perplexity(text.nll for text in stored.texts) / perplexity(text.nll for text in fresh.texts)
        off = abs(ratio - 1)
        name = f"{sum(len(text.nll) for text in stored.texts)} tokens of text"
        rows.append(ParityRow("stored reference, perplexity off", name, off, stored.tolerance, off <= stored.tolerance))
    return tuple(rows)


def _with_texts(
    fresh: Reference, stored: Reference | None, source: Checkpoint, bundle: Bundle, mode: str, progress: Progress
) -> Reference:
    """The fresh reference with the held-out text that a quantized bundle is checked with: the stored one's, if any."""
    mode = choose_reference(mode, source.config, source.num_parameters)
    if stored is None:
        held_out = held_out_texts(source, bundle.manifest.limits.max_seq_len, mode=mode)
        return held_out.add_to(fresh, source, mode, progress)
    return replace(fresh, texts=score_texts(source, tuple(text.ids for text in stored.texts), mode, progress))


def _plan_of(reference: Reference, wanted_steps: int | None) -> PromptPlan:
    steps = len(reference.prompts[0].greedy)
    if wanted_steps not in (None, steps):
        expected = f"{steps}, as many as the stored reference has"
        raise RequestError(str(wanted_steps), expected, "leave the option out", where="--reference-steps")
    prompts = tuple(prompt.ids for prompt in reference.prompts)
    return PromptPlan(prompts, steps, str(reference.judge.get("source", "stored")), ())


def _check_same_weights(bundle: Bundle, checkpoint: Checkpoint) -> None:
    expected = {file.name: file.header_sha256 for file in bundle.manifest.weights.files}
    found = {shard.path.name: shard.header_sha256 for shard in checkpoint.shards}
    if found != expected or checkpoint.config.to_dict() != bundle.manifest.model.config:
        raise BundleError(
            "another checkpoint", f"the one that {bundle.directory} was built from", "name it with --checkpoint",
            where=str(checkpoint.directory),
        )  # fmt: skip


def _store(bundle: Bundle, reference: Reference) -> None:
    temporary = bundle.file(f".{REFERENCE_FILE}")
    write_reference(temporary, reference)
    temporary.replace(bundle.file(REFERENCE_FILE))
    files = {**bundle.manifest.files, REFERENCE_FILE: file_record(bundle.file(REFERENCE_FILE))}
    write_manifest(bundle.directory, replace(bundle.manifest, files=files))
