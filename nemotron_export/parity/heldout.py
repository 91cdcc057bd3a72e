"""Text that a quantized bundle's perplexity is measured on, and what eager PyTorch makes of it in fp32.

Shapes: n tokens of a text, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from nemotron_errors import RequestError
from nemotron_runtime.checks.perplexity import token_nll
from nemotron_runtime.checks.reference import Reference, ReferenceText

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model
from nemotron_export.parity.layerwise import Feed, LayerwiseModel
from nemotron_export.parity.prompts import ENGLISH_TEXT
from nemotron_export.parity.reference import encoder
from nemotron_export.progress import Progress, silent

__all__ = ["EVAL_FILE", "HeldOut", "held_out_texts", "score_texts"]

# next to a checkpoint: text of the kind that its model knows, which it was not trained on
EVAL_FILE = "eval.txt"
_WINDOW, _MOST_TOKENS = 512, 4096
_RANDOM_TOKENS, _SEED = 512, 21
# positions whose logits are made at once
_POSITIONS = 64
# a layer-by-layer reference holds the logits of all positions
_LAYERWISE_LOGITS_BYTES = 1 << 30


@dataclass(frozen=True)
class HeldOut:
    """Windows of the text, each int64 [n] with n at least 2, where it is from, and what was left out."""

    windows: tuple[np.ndarray, ...]
    source: str
    notes: tuple[str, ...] = ()

    def add_to(self, reference: Reference, checkpoint: Checkpoint, mode: str, progress: Progress = silent) -> Reference:
        """The reference with the scored text (:func:`score_texts`) and where it is from."""
        about = {"text": self.source, "text_notes": list(self.notes)}
        texts = score_texts(checkpoint, self.windows, mode, progress)
        return replace(reference, texts=texts, judge={**reference.judge, **about})


def held_out_texts(
    checkpoint: Checkpoint, max_seq_len: int, file: str | Path | None = None, *, mode: str = "whole"
) -> HeldOut:
    """Chooses the text: `file`, or eval.txt in the checkpoint's folder, or the parity prompts' English text.

    Up to 4,096 tokens, in windows of up to 512 that do not see each other. Without a tokenizer the tokens are random.

    Args:
        checkpoint: a language model; other tasks have no perplexity and get no windows.
        max_seq_len: no window is longer.
        file: UTF-8 text of the user's own.
        mode: "whole" or "layerwise": how the reference is computed.

    Raises:
        RequestError: a file that cannot be read, is too short, or cannot be encoded for want of a tokenizer.
        TokenizerError: a tokenizer that does not fit the model.
    """
    if checkpoint.task != "causal-lm":
        if file is not None:
            found, expected = f"a text for {checkpoint.task}", "a language model"
            raise RequestError(found, expected, "leave --eval-text out", where="--eval-text")
        return HeldOut((), "none: not a language model")
    encode = encoder(checkpoint.directory, checkpoint.config.vocab_size)
    default = checkpoint.directory / EVAL_FILE
    if encode is None:
        if file is not None:
            found, remedy = "a checkpoint without a tokenizer", "put tokenizer.json beside the weights"
            raise RequestError(found, "a tokenizer that encodes the text", remedy, where="--eval-text")
        generator = np.random.Generator(np.random.Philox(_SEED))
        ids = generator.integers(0, checkpoint.config.vocab_size, _RANDOM_TOKENS, dtype=np.int64)
        source = f"random ids, Philox seed {_SEED}"
    else:
        if file is not None:
            text, source = _read(Path(file)), Path(file).name
        elif default.is_file():
            text, source = _read(default), f"{EVAL_FILE} beside the checkpoint"
        else:
            text, source = ENGLISH_TEXT, "fixed English text"
        ids = np.asarray(encode(text), np.int64)
    most = _MOST_TOKENS
    if mode == "layerwise":
        most = min(most, max(2, _LAYERWISE_LOGITS_BYTES // (4 * checkpoint.config.vocab_size)))
    notes = (f"{most} of {len(ids)} tokens",) if len(ids) > most else ()
    ids = ids[:most]
    window = min(_WINDOW, max_seq_len)
    windows = tuple(ids[i : i + window] for i in range(0, len(ids), window) if len(ids) - i > 1)
    if not windows:
        raise RequestError(f"{len(ids)} tokens", "2 or more", "give a longer text", where="--eval-text")
    return HeldOut(windows, source, notes)


def score_texts(
    checkpoint: Checkpoint, windows: tuple[np.ndarray, ...], mode: str, progress: Progress = silent
) -> tuple[ReferenceText, ...]:
    """Negative log-likelihoods of the windows by eager PyTorch in fp32.

    Args:
        checkpoint: the checkpoint.
        windows: token ids, each int64 [n].
        mode: "whole" or "layerwise" (one layer in memory at a time).
        progress: told (stage, done, total).
    """
    if not windows:
        return ()
    stage = "eager PyTorch, fp32, held-out text"
    if mode == "layerwise":
        feeds = [[Feed(ids, np.arange(len(ids) - 1))] for ids in windows]
        with LayerwiseModel(checkpoint, torch.float32, len(windows)) as model:
            outputs = model.feed(feeds, lambda done, total: progress(stage, done, total))
        return tuple(
            ReferenceText(ids, token_nll(logits.numpy(), ids[1:]))
            for ids, (logits,) in zip(windows, outputs, strict=True)
        )
    whole = load_model(checkpoint, torch.float32)
    scored = []
    for index, ids in enumerate(windows):
        progress(stage, index, len(windows))
        with torch.inference_mode():
            hidden = whole.base_model(torch.from_numpy(ids)[None], use_cache=False).last_hidden_state
            parts = [
                token_nll(whole.head(hidden[:, i : i + _POSITIONS])[0].numpy(), ids[i + 1 : i + 1 + _POSITIONS])
                for i in range(0, len(ids) - 1, _POSITIONS)
            ]
        scored.append(ReferenceText(ids, np.concatenate(parts)))
    return tuple(scored)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "no UTF-8 text"
        raise RequestError(str(found), "a text file", "check the path", where=str(file)) from error
