"""What eager PyTorch computes in fp32: the numbers that every bundle of a checkpoint is judged by.

Shapes: n prompt tokens, k positions with logits, m greedy tokens, j steps with logits, V values of each position (the
vocabulary for a language model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemotron_errors import TokenizerError
from nemotron_runtime.reference import Reference, ReferencePrompt
from nemotron_runtime.tokenizer import Tokenizer

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.environment import environment
from nemotron_export.model.load import load_task_model
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.parity.prompts import GREEDY_STEPS, PromptPlan, plan_prompts
from nemotron_export.progress import Progress, silent

__all__ = ["eager_rmse", "make_reference", "reference_for"]

_LM_POSITIONS = 3
_HEAD_POSITIONS = 64


def make_reference(
    model: NemotronPreTrainedModel, plan: PromptPlan, on_prompt: Callable[[int, int], None] = lambda done, total: None
) -> tuple[ReferencePrompt, ...]:
    """Runs the model over the plan's prompts, one by one, without padding, behind a dynamic cache.

    A language model's logits are kept at the first, middle and last position of a prompt, and after the first, middle
    and last greedy token that is fed: a row of a large vocabulary is a megabyte. Other heads' outputs are kept at up
    to 64 positions.

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
        """Outputs [k, V] at chosen positions of the new tokens."""
        out = self._model.base_model(torch.from_numpy(ids)[None], past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return self._model.head(out.last_hidden_state[:, torch.from_numpy(positions)])[0]

    def step(self, token: int) -> torch.Tensor:
        """Outputs [V] behind one more token."""
        return self.feed(np.array([token]), np.zeros(1, np.int64))[0]


@torch.inference_mode()
def _one_prompt(model: NemotronPreTrainedModel, ids: np.ndarray, steps: int) -> ReferencePrompt:
    n = len(ids)
    count = _LM_POSITIONS if steps else min(n, _HEAD_POSITIONS)
    positions = np.unique(np.linspace(0, n - 1, count).round().astype(np.int64))
    # the last greedy token is never fed
    step_positions = sorted({p for p in (0, steps // 2, steps - 2) if 0 <= p < steps - 1})
    run = _Run(model)
    outputs_kV = run.feed(ids, positions)
    greedy, margins, step_logits = [], [], []
    last_V = outputs_kV[-1]
    for step in range(steps):
        best, second = torch.topk(last_V, 2).values.tolist()
        # topk may break a tie in another way than argmax, which generation uses
        greedy.append(int(torch.argmax(last_V)))
        margins.append(best - second)
        if step == steps - 1:
            break
        last_V = run.step(greedy[-1])
        if step in step_positions:
            step_logits.append(last_V.numpy().copy())
    return ReferencePrompt(
        ids=ids,
        positions=positions,
        logits=outputs_kV.numpy().copy(),
        greedy=np.asarray(greedy, np.int64),
        margins=np.asarray(margins, np.float32),
        step_positions=np.asarray(step_positions, np.int64),
        step_logits=np.stack(step_logits) if step_logits else np.zeros((0, outputs_kV.shape[1]), np.float32),
    )


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
) -> Reference:
    """Loads a checkpoint and makes the reference of bundles with that `max_seq_len` and run dtype.

    Memory: the fp32 weights, then those in a low run dtype, and the keys and values of one prompt; all are gone when
    it returns.

    Args:
        checkpoint: the checkpoint.
        max_seq_len: prompts and greedy tokens stay within it.
        run_dtype: dtype of the bundle; PyTorch's own error in it is what a low-precision bundle is judged by.
        progress: told (stage, done, total).
        tokenizer_files: the folder of the tokenizer; the checkpoint's own where None.
        plan: the prompts; chosen by :func:`plan_prompts` where None.

    Raises:
        TokenizerError: a tokenizer that is broken, or gives ids that the model does not have.
    """
    if plan is None:
        encode = _encoder(tokenizer_files or checkpoint.directory, checkpoint.config.vocab_size)
        steps = GREEDY_STEPS if checkpoint.task == "causal-lm" else 0
        plan = plan_prompts(checkpoint.config.vocab_size, max_seq_len, encode, steps)
    progress("load fp32 reference", 0, 0)
    prompts = make_reference(
        load_task_model(checkpoint, torch.float32),
        plan,
        lambda done, total: progress("eager PyTorch, fp32", done, total),
    )
    rmse = None
    if run_dtype != "float32":
        progress(f"eager PyTorch, {run_dtype}", 0, 0)
        rmse = eager_rmse(load_task_model(checkpoint, getattr(torch, run_dtype)), prompts)
    judge = {
        **plan.to_dict(),
        "model": "eager PyTorch, float32, sdpa, dynamic cache",
        "environment": environment(torch.get_num_threads()),
    }
    return Reference(prompts, eager_rmse=rmse, judge=judge, task=checkpoint.task)


def _encoder(folder: Path, vocab_size: int) -> Callable[[str], list[int]] | None:
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
