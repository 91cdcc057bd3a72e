"""What eager PyTorch computes in fp32: the numbers that every bundle of a checkpoint is judged by.

Shapes: n prompt tokens, k positions with logits, m greedy tokens, j steps with logits, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemotron_runtime.tokenizer import Tokenizer
from safetensors.numpy import save_file

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.environment import environment
from nemotron_export.model import NemotronForCausalLM
from nemotron_export.model.load import load_model
from nemotron_export.parity.prompts import PromptPlan, plan_prompts
from nemotron_export.progress import Progress, silent

__all__ = ["TOLERANCE", "Reference", "logit_range", "make_reference", "reference_for"]

# Of the logit range (max - min over the reference's logits), for an fp32 bundle.
TOLERANCE = 1e-4


def make_reference(
    model: NemotronForCausalLM,
    plan: PromptPlan,
    on_token: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """Runs the model over the plan's prompts, one by one, without padding.

    Args:
        model: in fp32 and eval mode.
        plan: prompts and greedy steps.
        on_token: told (forwards done, forwards in all).

    Returns:
        For prompt i (three digits): `i/ids` int64 [n], `i/positions` int64 [k], `i/logits` float32 [k, V],
        `i/greedy` int64 [m], `i/margins` float32 [m] (top 1 - top 2 at each greedy token), `i/step_positions`
        int64 [j], `i/step_logits` float32 [j, V] (logits after greedy token p was fed).
    """
    assert model.dtype == torch.float32
    tensors: dict[str, np.ndarray] = {}
    total = len(plan.prompts) * plan.steps
    for index, ids in enumerate(plan.prompts):
        done = index * plan.steps
        made = _one_prompt(model, ids, plan.steps, lambda step, done=done: on_token(done + step, total))  # type: ignore[misc]
        tensors |= {f"{index:03d}/{name}": np.ascontiguousarray(value) for name, value in made.items()}
    return tensors


@torch.inference_mode()
def _one_prompt(
    model: NemotronForCausalLM, ids: np.ndarray, steps: int, on_step: Callable[[int], None]
) -> dict[str, np.ndarray]:
    n = len(ids)
    positions = sorted({0, n // 2, n - 1})
    # the last greedy token is never fed
    step_positions = sorted({p for p in (0, steps // 2, steps - 2) if 0 <= p < steps - 1})
    prompt_BS = torch.from_numpy(ids)[None]
    output = model(prompt_BS, use_cache=True, logits_to_keep=torch.tensor(positions))
    logits_KV = output.logits[0]
    greedy, margins, step_logits = [], [], []
    last_V = logits_KV[-1]
    for step in range(steps):
        best, second = torch.topk(last_V, 2).values.tolist()
        # argmax and topk may break a tie differently; argmax is what generation uses
        greedy.append(int(torch.argmax(last_V)))
        margins.append(best - second)
        on_step(step + 1)
        if step == steps - 1:
            break
        output = model(torch.tensor([[greedy[-1]]]), past_key_values=output.past_key_values, use_cache=True)
        last_V = output.logits[0, -1]
        if step in step_positions:
            step_logits.append(last_V.numpy().copy())
    return {
        "ids": ids,
        "positions": np.asarray(positions, dtype=np.int64),
        "logits": logits_KV.numpy().copy(),
        "greedy": np.asarray(greedy, dtype=np.int64),
        "margins": np.asarray(margins, dtype=np.float32),
        "step_positions": np.asarray(step_positions, dtype=np.int64),
        "step_logits": np.stack(step_logits) if step_logits else np.zeros((0, len(last_V)), dtype=np.float32),
    }


@dataclass(frozen=True)
class Reference:
    """A reference and how it was made; tensors as :func:`make_reference` gives them."""

    tensors: Mapping[str, np.ndarray]
    judge: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Writes `reference.safetensors`."""
        metadata = {
            "format": "1",
            "kind": "nemotron-reference",
            "tolerance": repr(TOLERANCE),
            "logit_range": repr(logit_range(self.tensors)),
            "judge": json.dumps(self.judge, sort_keys=True),
        }
        save_file(dict(self.tensors), str(path), metadata=metadata)


def logit_range(tensors: Mapping[str, np.ndarray]) -> float:
    """max - min over all logits of a reference: what tolerances are relative to."""
    logits = [value for name, value in tensors.items() if name.endswith("logits") and value.size]
    return float(max(value.max() for value in logits) - min(value.min() for value in logits))


def reference_for(checkpoint: Checkpoint, max_seq_len: int, progress: Progress = silent) -> Reference:
    """Loads a checkpoint in fp32 and makes the reference of bundles with that `max_seq_len`.

    Memory: the fp32 weights, and the keys and values of one prompt; both are gone when it returns.
    """
    encode = None
    if checkpoint.tokenizer_files:
        encode = Tokenizer.from_directory(checkpoint.directory).encode
    plan = plan_prompts(checkpoint.config.vocab_size, max_seq_len, encode)
    progress("load fp32 reference", 0, 0)
    model = load_model(checkpoint, torch.float32)
    tensors = make_reference(model, plan, lambda done, total: progress("reference by eager PyTorch", done, total))
    judge = {
        **plan.to_dict(),
        "model": "eager PyTorch, float32, sdpa, dynamic cache",
        "max_seq_len": max_seq_len,
        **environment(torch.get_num_threads()),
    }
    return Reference(tensors, judge)
