"""ONNX Runtime GenAI and this project's runtime write greedily behind the same prompts; where they part is judged.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import onnxruntime_genai as og
import torch
from nemotron_runtime.checks.rules import FLIP_MARGIN

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model
from nemotron_export.parity.device import true_fp32

DEMO = Path(__file__).parents[2] / "nemotron_export" / "assets" / "demo"
NEW_TOKENS = 64
PROMPTS = (
    "If the file does not exist,",
    "def f(x):\n    return x",
    "The function returns the number of",
    "Zürich, ",
    (DEMO / "eval.txt").read_text(encoding="utf-8")[:1200],
    (DEMO / "eval.txt").read_text(encoding="utf-8")[1200:],
)


@dataclass(frozen=True)
class Written:
    """A prompt, what each wrote behind it, and what prompt and tokens say as a text of each."""

    prompt: list[int]
    theirs: list[int]
    ours: list[int]
    texts: tuple[str, str]

    @property
    def parting(self) -> int | None:
        """The first place where the tokens differ."""
        return next((n for n, pair in enumerate(zip(self.theirs, self.ours, strict=True)) if pair[0] != pair[1]), None)


def write_both(genai: Path, ours: Path) -> list[Written]:
    """64 greedy tokens of each behind every prompt, the end of the sequence ruled out.

    Args:
        genai: a bundle that GenAI opens.
        ours: a bundle of the same checkpoint that the runtime opens.
    """
    written = []
    with nemotron_runtime.load(ours, allow_unverified=True) as model:
        theirs = og.Model(str(genai))
        tokenizer = og.Tokenizer(theirs)
        for text in PROMPTS:
            prompt = model.tokenizer.encode(text)
            tokens = _genai_tokens(theirs, prompt)
            result = model.generate(prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
            found = list(result.token_ids)
            assert len(tokens) == len(found) == NEW_TOKENS
            # with the prompt in front: of a continuation alone GenAI keeps the space that it begins with
            whole = np.array([*prompt, *tokens], np.int32)
            texts = tokenizer.decode(whole), model.tokenizer.decode([*prompt, *found])
            written.append(Written(prompt, tokens, found, texts))
    return written


def _genai_tokens(model: Any, prompt: Sequence[int]) -> list[int]:
    params = og.GeneratorParams(model)
    length = len(prompt) + NEW_TOKENS
    params.set_search_options(do_sample=False, max_length=length, min_length=length, batch_size=1)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32)[None])
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def check_agreement(written: Sequence[Written], checkpoint: Path, dtype: torch.dtype, device: str) -> None:
    """Fails where both part at a place that PyTorch is sure of, or on more than half of the prompts, or in their texts.

    A place is doubtful where fp32's logits of the two tokens are no further apart than the parity protocol's margin:
    4 times the RMSE of PyTorch's own logits in ``dtype``, on the same device. In float32 that is no margin at all.
    """
    parted = [each for each in written if each.parting is not None]
    if parted:
        opened = Checkpoint.open(checkpoint)
        exact, low = (load_model(opened, each, "sdpa", device) for each in (torch.float32, dtype))
        for each in parted:
            at = each.parting
            assert at is not None
            text = np.array([*each.prompt, *each.ours[:at]])
            exact_NV, low_NV = (_logits(model, text, device) for model in (exact, low))
            margin = abs(exact_NV[-1, each.theirs[at]] - exact_NV[-1, each.ours[at]])
            bound = FLIP_MARGIN * float(np.sqrt(np.square(low_NV - exact_NV).mean()))
            said = f"token {at}: {each.theirs[at]} and {each.ours[at]}, {margin:.3g} apart, allowed {bound:.3g}"
            assert margin <= bound, said
    assert 2 * len(parted) <= len(written), f"{len(parted)} of {len(written)} prompts parted"
    for each in written:
        if each.parting is None:
            assert each.texts[0] == each.texts[1]


@torch.inference_mode()
def _logits(model: Any, text: np.ndarray, device: str) -> np.ndarray:
    """Logits [N, V] of every position, in float64."""
    with true_fp32(device):
        ids = torch.from_numpy(text).to(device)[None]
        return model(ids).logits[0].double().cpu().numpy()
