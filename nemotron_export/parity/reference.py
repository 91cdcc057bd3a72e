"""What eager PyTorch computes in fp32: the numbers that every bundle of a checkpoint is checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nemotron_errors import RequestError, TokenizerError
from nemotron_runtime.checks.reference import Reference
from nemotron_runtime.text.tokenizer import Tokenizer

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.versions import environment
from nemotron_export.parity.device import choose_device, device_name, true_fp32
from nemotron_export.parity.greedy_run import run_prompts, run_rmse
from nemotron_export.parity.layerwise import LayerwiseModel, OnStep
from nemotron_export.parity.memory import choose_reference
from nemotron_export.parity.prompts import GREEDY_STEPS, PromptPlan, plan_prompts
from nemotron_export.parity.whole import WholeModel
from nemotron_export.progress import Progress, silent

__all__ = ["LAYERWISE_GREEDY_STEPS", "encoder", "reference_for"]

# Each greedy step of a layer-by-layer run reads the whole checkpoint once.
LAYERWISE_GREEDY_STEPS = 8


def reference_for(
    checkpoint: Checkpoint,
    max_seq_len: int,
    run_dtype: str,
    progress: Progress = silent,
    *,
    tokenizer_files: Path | None = None,
    plan: PromptPlan | None = None,
    mode: str = "auto",
    greedy_steps: int | None = None,
    wide: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Reference:
    """Makes the reference of a checkpoint's bundles with that `max_seq_len` and run dtype.

    Memory: the keys and values of all prompts, and the fp32 weights, then those in a low run dtype; layer by layer, one
    layer's weights. All are gone when it returns. Both ways give the same bits.

    Args:
        checkpoint: the checkpoint.
        max_seq_len: prompts and greedy tokens stay within it.
        run_dtype: dtype of the bundle; PyTorch's own error in it is what a low-precision bundle's is compared with.
        progress: told (stage, done, total).
        tokenizer_files: the folder of the tokenizer; the checkpoint's own where None.
        plan: the prompts; chosen by :func:`plan_prompts` where None.
        mode: "whole", "layerwise", or "auto": layer by layer where the memory available does not hold the fp32 model.
        wide: in fp16, ``wide_layers`` (see ``Fp32MlpLayers``): PyTorch's own run computes them in fp32 too; recorded.
        greedy_steps: after each prompt, where no plan is given; 64 with the whole model, 8 layer by layer.
        device: of the whole model: "cpu", "cuda", or "auto": the GPU where there is one that holds it. Layer by layer
            it is the CPU.

    Raises:
        TokenizerError: a tokenizer that is broken, or gives ids that the model does not have.
        MissingDependencyError, ResourceError: see :func:`choose_device`.
        RequestError: an unknown mode, or a number of greedy steps below 1.
    """
    place = _choose_place(checkpoint, mode, device)
    layerwise = place is None
    if plan is None:
        encode = encoder(tokenizer_files or checkpoint.directory, checkpoint.config.vocab_size)
        plan = _plan(checkpoint, max_seq_len, encode, layerwise, greedy_steps)
    wide = wide or {}
    # a build in fp16 with its activations measured has the whole model in memory
    assert place is not None or not wide
    count, how = len(plan.prompts), ", layer by layer" if place is None else ""

    def model_in(dtype: str) -> LayerwiseModel | WholeModel:
        if place is None:
            return LayerwiseModel(checkpoint, getattr(torch, dtype), count)
        progress(f"load {dtype} reference", 0, 0)
        layers = () if dtype == "float32" else wide.get("wide_layers", ())
        return WholeModel(checkpoint, getattr(torch, dtype), count, place, layers)

    def stage(dtype: str) -> OnStep:
        return lambda done, total: progress(f"eager PyTorch, {dtype}{how}", done, total)

    rmse = None
    with true_fp32(place or "cpu"):
        with model_in("float32") as model:
            prompts = run_prompts(model, plan, stage("fp32"))
        if run_dtype != "float32":
            with model_in(run_dtype) as model:
                rmse = run_rmse(model, prompts, stage(run_dtype))
    record = {
        **plan.to_dict(),
        **wide,
        "model": "eager PyTorch, float32, sdpa, dynamic cache"
        + (how if place in (None, "cpu") else f", on {device_name(place)}"),
        "environment": environment(torch.get_num_threads()),
    }
    return Reference(prompts, eager_rmse=rmse, judge=record, task=checkpoint.task)


def _choose_place(checkpoint: Checkpoint, mode: str, device: str) -> str | None:
    """The device of the whole model; None for layer by layer."""
    if mode == "layerwise" and device == "cuda":
        found, remedy = "a reference made layer by layer on a GPU", "leave one of the two options out"
        raise RequestError(found, "the whole model there, or layers on the CPU", remedy, where="--reference-device")
    if mode != "layerwise" and choose_device(device, checkpoint.num_parameters) == "cuda":
        # the host's memory does not matter; an unknown mode is refused all the same
        choose_reference(mode, checkpoint.config, checkpoint.num_parameters, memory=1 << 62)
        return "cuda"
    mode = choose_reference(mode, checkpoint.config, checkpoint.num_parameters)
    return None if mode == "layerwise" else "cpu"


def _plan(
    checkpoint: Checkpoint,
    max_seq_len: int,
    encode: Callable[[str], list[int]] | None,
    layerwise: bool,
    greedy_steps: int | None,
) -> PromptPlan:
    if greedy_steps is not None and greedy_steps < 1:
        raise RequestError(str(greedy_steps), "at least 1", "raise it", where="--reference-steps")
    steps = greedy_steps or (LAYERWISE_GREEDY_STEPS if layerwise else GREEDY_STEPS)
    if checkpoint.task != "causal-lm":
        return plan_prompts(checkpoint.config.vocab_size, max_seq_len, encode, 0)
    plan = plan_prompts(checkpoint.config.vocab_size, max_seq_len, encode, steps)
    if steps == GREEDY_STEPS:
        return plan
    why = "--reference-steps" if greedy_steps else "made layer by layer, where each of them reads the whole checkpoint"
    return replace(plan, notes=(*plan.notes, f"{steps} greedy steps, not {GREEDY_STEPS}: {why}"))


def encoder(folder: Path, vocab_size: int) -> Callable[[str], list[int]] | None:
    """The folder's tokenizer, checked against the model's vocabulary; None where there is none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = Tokenizer.from_directory(folder)

    def encode(text: str) -> list[int]:
        ids = tokenizer.encode(text)
        if not ids or max(ids) >= vocab_size:
            raise TokenizerError(
                f"token id {max(ids, default=None)}",
                f"ids below the model's vocab_size {vocab_size}",
                "put the tokenizer files that belong to this checkpoint next to it",
                where=str(folder),
            )
        return ids

    return encode
