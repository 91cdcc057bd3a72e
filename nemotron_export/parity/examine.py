"""`parity --bisect` and `--report`: a closer look at a bundle, with the reference model in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from nemotron_errors import BundleError, ResourceError, TokenizerError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.checks.reference import REFERENCE_FILE, read_reference
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.text.tokenizer import Tokenizer

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.memory import available_memory
from nemotron_export.model.fp32_mlp import set_fp32_mlp
from nemotron_export.model.load import load_model
from nemotron_export.parity.bisect import Bisection, bisect
from nemotron_export.parity.drift import Decode, Drift, measure_drift
from nemotron_export.parity.verdict import quiet_about_parity
from nemotron_export.progress import Progress, silent

__all__ = ["Examination", "examine"]


@dataclass(frozen=True)
class Examination:
    """What was looked at.

    Attributes:
        bisection: the walk through the layers.
        drift: the outputs by position.
        bundle: what was examined, for the report's head.
    """

    bisection: Bisection
    drift: Drift | None
    bundle: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The keys that it adds to parity.json."""
        added = {"bundle": self.bundle, "bisection": self.bisection.to_dict()}
        return added if self.drift is None else {**added, "drift": self.drift.to_dict()}


def examine(
    bundle: str | Path,
    *,
    drift: bool,
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Examination:
    """Walks a bundle's values against eager PyTorch's, with its longest reference prompt.

    Args:
        bundle: the bundle's folder, whatever its parity state.
        drift: also compare the outputs of every prompt, position by position.
        checkpoint: the checkpoint; the folder of the bundle's weights by default.
        weights_dir: where the weights are, if they were moved.
        threads: CPU threads of the bundle's session.
        progress: told (stage, done, total).

    Raises:
        BundleError: a broken bundle, or one without a reference.
        ResourceError: too little memory for the reference model.
    """
    with quiet_about_parity():
        opened = Bundle.open(bundle, weights_dir=weights_dir, allow_unverified=True)
    if REFERENCE_FILE not in opened.manifest.files:
        remedy = f"run `nemotron-export parity {bundle}` first, which makes it"
        raise BundleError(f"no {REFERENCE_FILE}", "the prompts to look at", remedy, where=str(bundle))
    prompts = [prompt.ids for prompt in read_reference(opened.file(REFERENCE_FILE)).prompts]
    folder = opened.weights_directory if checkpoint is None else Path(checkpoint)
    source = Checkpoint.open(folder, task=opened.manifest.task)
    dtypes = list(dict.fromkeys(("float32", opened.manifest.dtype)))
    _check_memory(source, dtypes)
    progress("load the reference", 0, 0)
    models = [load_model(source, getattr(torch, dtype)) for dtype in dtypes]
    for low in models[1:]:
        set_fp32_mlp(low, opened.manifest.model.fp32_mlp_layers)
    found = None
    if drift:
        progress("drift by position", 0, 0)
        language_model = opened.manifest.task == "causal-lm"
        with Engine(open_executor(opened, threads)) as engine:
            found = measure_drift(engine, models, prompts, _decoder(opened), language_model=language_model)
    bisection = bisect(opened, models, max(prompts, key=len), threads, progress)
    return Examination(bisection, found, _described(opened, source))


def _described(bundle: Bundle, source: Checkpoint) -> dict[str, Any]:
    """What the report's head says of the bundle."""
    manifest, config = bundle.manifest, source.config
    return {
        "name": bundle.directory.name,
        "target": manifest.target,
        "task": manifest.task,
        "dtype": manifest.dtype,
        "limits": asdict(manifest.limits),
        "model": {
            "parameters": source.num_parameters,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "rotary_dim": config.rotary_dim,
            "vocab_size": config.vocab_size,
        },
    }


def _check_memory(checkpoint: Checkpoint, dtypes: list[str]) -> None:
    # the models, and the session's own copy of the weights
    needed = checkpoint.num_parameters * (sum(getattr(torch, dtype).itemsize for dtype in dtypes) + 4)
    available = available_memory()
    if needed > available:
        raise ResourceError(
            f"{available / 1e9:.2f} GB of memory available",
            f"about {needed / 1e9:.2f} GB: the reference model in {' and '.join(dtypes)}, and the bundle's weights",
            "use a machine with more memory; `parity` without --bisect and --report needs one layer at a time",
            where="memory",
        )


def _decoder(bundle: Bundle) -> Decode | None:
    if not any(name in bundle.manifest.files for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = Tokenizer.from_directory(bundle.directory)

    def decode(token: int) -> str:
        try:
            return tokenizer.decode([token], skip_special_tokens=False)
        except TokenizerError:
            return ""  # the model's vocabulary is larger than the tokenizer's

    return decode
