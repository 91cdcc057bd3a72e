"""Checks whether eager PyTorch on the same device could have chosen the tokens that backends wrote greedily.

With random weights the best tokens are near ties in
low precision, so two right implementations part sooner or later. A token passes where eager fp32's best logit is ahead
of it by no more than 4 times the RMSE of eager's own logits in the run dtype, after the tokens that were chosen.
Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemotron_export.bench.options import Shape
from nemotron_export.bench.worker import prompt_ids
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model
from nemotron_export.parity.device import true_fp32

__all__ = ["check"]

MARGIN = 4.0


@torch.inference_mode()
def last_logits(model: Any, text: np.ndarray, count: int, device: str) -> torch.Tensor:
    """Logits [N, V] of the last `count` positions, float32."""
    with true_fp32(device):
        ids = torch.from_numpy(text).to(device)[None]
        return model(ids).logits[0, -count:].float()


def check(checkpoint: Path, written: dict[str, list[int]], prompt_tokens: int, device: str) -> dict[str, Any]:
    """Verdicts by name: worst_margin, bound, passed, and fp32_best, the number of tokens that are fp32's choice.

    Args:
        checkpoint: the folder.
        written: name → tokens, all after the same prompt of so many tokens.
        prompt_tokens: of `prompt_ids`.
        device: "cuda" or "cpu".
    """
    opened = Checkpoint.open(checkpoint)
    count = len(next(iter(written.values())))
    prompt = prompt_ids(Shape(prompt_tokens, count, 1), opened.config.vocab_size)[0]
    texts = {name: np.array([*prompt, *tokens[:-1]], np.int64) for name, tokens in written.items()}
    # one model after the other: an fp32 one together with another may not fit
    exact_NV: dict[str, torch.Tensor] = {}
    model = load_model(opened, torch.float32, "sdpa", device)
    for name, text in texts.items():
        exact_NV[name] = last_logits(model, text, count, device).cpu()
    low_dtype = getattr(torch, opened.dtype) if device == "cuda" else torch.bfloat16
    model = None
    model = load_model(opened, low_dtype, "sdpa", device)
    verdicts = {}
    for name, tokens in written.items():
        exact = exact_NV[name]
        error = last_logits(model, texts[name], count, device).cpu() - exact
        bound = MARGIN * float(error.double().square().mean().sqrt())
        margins_N = exact.max(-1).values - exact[torch.arange(count), torch.tensor(tokens)]
        worst = float(margins_N.max())
        verdicts[name] = {
            "worst_margin": worst, "bound": bound, "passed": worst <= bound, "fp32_best": int((margins_N == 0).sum()),
        }  # fmt: skip
    return verdicts
