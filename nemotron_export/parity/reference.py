"""What eager PyTorch computes in fp32: the numbers that every bundle of a checkpoint is judged by.

Shapes: n prompt tokens, k positions with logits, m greedy tokens, j steps with logits, V values of each position (the
vocabulary for a language model).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemotron_errors import RequestError, TokenizerError
from nemotron_runtime.checks.reference import Reference, ReferencePrompt
from nemotron_runtime.text.tokenizer import Tokenizer

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.versions import environment
from nemotron_export.model.load import load_model
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.model.wide import widen_mlp
from nemotron_export.parity.device import choose_device, device_name, true_fp32
from nemotron_export.parity.layerwise import LayerwiseModel
from nemotron_export.parity.layerwise_reference import layerwise_reference, layerwise_rmse
from nemotron_export.parity.memory import choose_reference
from nemotron_export.parity.prompts import GREEDY_STEPS, PromptPlan, plan_prompts
from nemotron_export.parity.reference_recorder import PromptRecorder
from nemotron_export.progress import Progress, silent

__all__ = ["LAYERWISE_GREEDY_STEPS", "eager_rmse", "encoder", "make_reference", "reference_for"]

# Each greedy step of a layer-by-layer run reads the whole checkpoint once.
LAYERWISE_GREEDY_STEPS = 8


def make_reference(
    model: NemotronPreTrainedModel, plan: PromptPlan, on_prompt: Callable[[int, int], None] = lambda done, total: None
) -> tuple[ReferencePrompt, ...]:
    """Runs the model over the plan's prompts, one by one, without padding, behind a dynamic cache.

    What is kept of it: see :class:`PromptRecorder`.

    Args:
        model: in fp32 and eval mode.
        plan: prompts and greedy steps.
        on_prompt: told (prompts done, prompts in all).
    """
    assert model.dtype == torch.float32
    made = []
    for index, ids in enumerate(plan.prompts):
        on_prompt(index, len(plan.prompts))
        made.append(_one_prompt(model, ids, plan.steps))
    return tuple(made)


class _Run:
    """One prompt through a model of any task, behind a dynamic cache."""

    def __init__(self, model: NemotronPreTrainedModel) -> None:
        self._model = model
        self._cache: Any = None

    def feed(self, ids: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Outputs [k, V] at chosen positions of the new tokens, on the CPU."""
        device = self._model.device
        ids_1S = torch.from_numpy(ids).to(device)[None]
        out = self._model.base_model(ids_1S, past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return self._model.head(out.last_hidden_state[:, torch.from_numpy(positions).to(device)])[0].cpu()

    def step(self, token: int) -> torch.Tensor:
        """Outputs [V] behind one more token."""
        return self.feed(np.array([token]), np.zeros(1, np.int64))[0]


@torch.inference_mode()
def _one_prompt(model: NemotronPreTrainedModel, ids: np.ndarray, steps: int) -> ReferencePrompt:
    recorder = PromptRecorder(ids, steps)
    run = _Run(model)
    recorder.prefilled(run.feed(ids, recorder.positions))
    for step in range(steps):
        token = recorder.choose()
        if step < steps - 1:
            recorder.stepped(run.step(token))
    return recorder.result()


@torch.inference_mode()
def eager_rmse(model: NemotronPreTrainedModel, prompts: Sequence[ReferencePrompt]) -> float:
    """RMSE of a low-precision model's outputs against the reference's, fed with the reference's own tokens."""
    squares = []
    for prompt in prompts:
        run = _Run(model)
        outputs_kV = run.feed(prompt.ids, prompt.positions).float().numpy()
        squares.append(np.square(outputs_kV - prompt.logits, dtype=np.float64).ravel())
        for step in range(int(prompt.step_positions[-1]) + 1 if len(prompt.step_positions) else 0):
            output_V = run.step(int(prompt.greedy[step])).float().numpy()
            for expected_V in prompt.step_logits[prompt.step_positions == step]:
                squares.append(np.square(output_V - expected_V, dtype=np.float64))
    return float(np.sqrt(np.concatenate(squares).mean()))


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

    Memory: the fp32 weights, then those in a low run dtype, and the keys and values of one prompt; layer by layer, one
    layer's weights and the keys and values of all prompts. All are gone when it returns. Both ways give the same bits.

    Args:
        checkpoint: the checkpoint.
        max_seq_len: prompts and greedy tokens stay within it.
        run_dtype: dtype of the bundle; PyTorch's own error in it is what a low-precision bundle is judged by.
        progress: told (stage, done, total).
        tokenizer_files: the folder of the tokenizer; the checkpoint's own where None.
        plan: the prompts; chosen by :func:`plan_prompts` where None.
        mode: "whole", "layerwise", or "auto": layer by layer where the memory available does not hold the fp32 model.
        wide: in fp16, ``wide_layers`` (see :class:`WideLayers`): PyTorch's own run computes them in fp32 too; recorded.
        greedy_steps: behind each prompt, where no plan is given; 64 with the whole model, 8 layer by layer.
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
    if place is None:
        # a build in fp16 with its activations measured has the whole model in memory
        assert not wide
        prompts, rmse = _layer_by_layer(checkpoint, plan, run_dtype, progress)
    else:
        with true_fp32(place):
            prompts, rmse = _whole(checkpoint, plan, run_dtype, progress, wide.get("wide_layers", ()), place)
    judge = {
        **plan.to_dict(),
        **wide,
        "model": "eager PyTorch, float32, sdpa, dynamic cache"
        + (", layer by layer" if place is None else "" if place == "cpu" else f", on {device_name(place)}"),
        "environment": environment(torch.get_num_threads()),
    }
    return Reference(prompts, eager_rmse=rmse, judge=judge, task=checkpoint.task)


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


def _whole(
    checkpoint: Checkpoint,
    plan: PromptPlan,
    run_dtype: str,
    progress: Progress,
    wide_layers: Collection[int],
    device: str,
) -> tuple[tuple[ReferencePrompt, ...], float | None]:
    progress("load fp32 reference", 0, 0)
    prompts = make_reference(
        load_model(checkpoint, torch.float32, device=device),
        plan,
        lambda done, total: progress("eager PyTorch, fp32", done, total),
    )
    if run_dtype == "float32":
        return prompts, None
    progress(f"eager PyTorch, {run_dtype}", 0, 0)
    low = load_model(checkpoint, getattr(torch, run_dtype), device=device)
    widen_mlp(low, wide_layers)
    return prompts, eager_rmse(low, prompts)


def _layer_by_layer(
    checkpoint: Checkpoint, plan: PromptPlan, run_dtype: str, progress: Progress
) -> tuple[tuple[ReferencePrompt, ...], float | None]:
    def stage(dtype: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"eager PyTorch, {dtype}, layer by layer", done, total)

    with LayerwiseModel(checkpoint, torch.float32, len(plan.prompts)) as model:
        prompts = layerwise_reference(model, plan, stage("fp32"))
    if run_dtype == "float32":
        return prompts, None
    with LayerwiseModel(checkpoint, getattr(torch, run_dtype), len(plan.prompts)) as model:
        return prompts, layerwise_rmse(model, prompts, stage(run_dtype))


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
                "put the tokenizer files that belong to this checkpoint beside it",
                where=str(folder),
            )
        return ids

    return encode
