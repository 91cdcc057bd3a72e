"""reference.safetensors: what eager PyTorch computes in fp32, for the check.

Shapes: n prompt tokens, k positions with logits, m greedy tokens, j steps with logits, V values of each position: the
vocabulary, or what another task's head gives (then m = j = 0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

__all__ = [
    "REFERENCE_FILE",
    "Reference",
    "ReferencePrompt",
    "ReferenceText",
    "missing_reference_remedy",
    "read_reference",
    "write_reference",
]

REFERENCE_FILE = "reference.safetensors"
TOLERANCE = 1e-4

_FORMAT, _KIND = "1", "nemotron-reference"
_TEXT = "text-"
_REMEDY = "build the bundle again"


@dataclass(frozen=True)
class ReferencePrompt:
    """One prompt and what follows from it.

    Attributes:
        ids: int64 [n].
        positions: int64 [k], ascending; the last is n - 1.
        logits: float32 [k, V], at these positions.
        greedy: int64 [m], the tokens that greedy decoding goes on with.
        margins: float32 [m], best minus second-best logit at each of them.
        step_positions: int64 [j], ascending.
        step_logits: float32 [j, V], after greedy token number step_positions was fed.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float32]
    step_positions: npt.NDArray[np.int64]
    step_logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceText:
    """A window of held-out text.

    Attributes:
        ids: int64 [n].
        nll: float32 [n - 1], negative log-likelihood in nats of each token but the first, given those before it.
    """

    ids: npt.NDArray[np.int64]
    nll: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """All prompts and how to compare with them.

    Attributes:
        prompts: the prompts.
        tolerance: of max |Δlogit| / logit_range, for fp32.
        eager_rmse: RMSE of PyTorch's own run in the bundle's dtype against these logits, over all prefill and step
            logits; None for fp32.
        judge: how the reference was made.
        task: what the head is for.
        texts: held-out text, for the perplexity of quantized weights; none otherwise.
    """

    prompts: tuple[ReferencePrompt, ...]
    tolerance: float = TOLERANCE
    eager_rmse: float | None = None
    judge: Mapping[str, Any] = field(default_factory=dict)
    task: str = "causal-lm"
    texts: tuple[ReferenceText, ...] = ()

    @property
    def logit_range(self) -> float:
        """max - min over all logits."""
        arrays = [a for p in self.prompts for a in (p.logits, p.step_logits) if a.size]
        return float(max(a.max() for a in arrays) - min(a.min() for a in arrays))


def write_reference(path: str | Path, reference: Reference) -> None:
    """Writes the file that :func:`read_reference` reads."""
    names = [item.name for item in fields(ReferencePrompt)]
    tensors = {
        f"{i:03d}/{name}": np.ascontiguousarray(getattr(prompt, name))
        for i, prompt in enumerate(reference.prompts)
        for name in names
    }
    for i, text in enumerate(reference.texts):
        tensors |= {f"{_TEXT}{i:03d}/ids": np.ascontiguousarray(text.ids), f"{_TEXT}{i:03d}/nll": text.nll}
    metadata = {
        "format": _FORMAT,
        "kind": _KIND,
        "task": reference.task,
        "tolerance": repr(reference.tolerance),
        "logit_range": repr(reference.logit_range),
        "judge": json.dumps(dict(reference.judge), sort_keys=True),
    }
    if reference.eager_rmse is not None:
        metadata["eager_rmse"] = repr(reference.eager_rmse)
    save_file(tensors, str(path), metadata=metadata)


def missing_reference_remedy(bundle: Path) -> str:
    """What a user does about a bundle that was built without a reference."""
    return (
        f"run `nemotron-export parity {bundle}`, which makes the reference from the checkpoint and compares with it "
        '(pip install "nemotron-export[build]")'
    )


def read_reference(path: str | Path) -> Reference:
    """Reads reference.safetensors.

    Raises:
        BundleError: no such file, another kind of file, or tensors that do not fit together.
    """
    where = str(path)
    if not Path(path).is_file():
        remedy = missing_reference_remedy(Path(path).parent)
        raise BundleError("no such file", "the reference to compare with", remedy, where=where)
    try:
        with safe_open(where, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise BundleError(f"a broken file ({error})", "a reference", _REMEDY, where=where) from error
    if metadata.get("kind") != _KIND or metadata.get("format") != _FORMAT:
        found = f"kind {metadata.get('kind')!r}, format {metadata.get('format')!r}"
        remedy = "update nemotron-export here, or build the bundle again"
        raise BundleError(found, f"kind {_KIND!r}, format {_FORMAT!r}", remedy, where=where)
    try:
        tolerance = float(metadata["tolerance"])
        rmse = float(metadata["eager_rmse"]) if "eager_rmse" in metadata else None
        judge = json.loads(metadata.get("judge", "{}"))
        task = metadata["task"]
    except (KeyError, ValueError) as error:
        raise BundleError(f"broken metadata ({error})", "numbers", _REMEDY, where=where) from error
    groups = {name.split("/")[0] for name in tensors}
    text_count = sum(group.startswith(_TEXT) for group in groups)
    count = len(groups) - text_count
    prompts = tuple(_read_prompt(tensors, f"{i:03d}", where) for i in range(count))
    if not prompts or not (np.isfinite(tolerance) and tolerance > 0):
        raise BundleError(f"{count} prompts, tolerance {tolerance}", "prompts and a tolerance", _REMEDY, where=where)
    texts = tuple(_read_text(tensors, f"{_TEXT}{i:03d}", where) for i in range(text_count))
    return Reference(prompts, tolerance, rmse, judge, task, texts)


def _read_text(tensors: dict[str, npt.NDArray[Any]], key: str, where: str) -> ReferenceText:
    ids, nll = tensors.get(f"{key}/ids"), tensors.get(f"{key}/nll")
    if ids is None or nll is None or ids.ndim != 1 or len(ids) < 2 or nll.shape != (len(ids) - 1,):
        raise BundleError(f"a broken text {key}", "its ids and as many values less one", _REMEDY, where=where)
    if ids.dtype != np.int64 or nll.dtype != np.float32 or not np.isfinite(nll).all():
        found = f"ids of {ids.dtype} and values of {nll.dtype} in {key}"
        raise BundleError(found, "int64, and float32 without NaN or infinity", _REMEDY, where=where)
    return ReferenceText(ids, nll)


def _read_prompt(tensors: dict[str, npt.NDArray[Any]], key: str, where: str) -> ReferencePrompt:
    values = {}
    for item in fields(ReferencePrompt):
        name = f"{key}/{item.name}"
        if name not in tensors:
            raise BundleError(f"no tensor {name}", "all tensors of the prompt", _REMEDY, where=where)
        values[item.name] = tensors[name]
    prompt = ReferencePrompt(**values)
    n, m, V = len(prompt.ids), len(prompt.greedy), prompt.logits.shape[-1]
    fits = (
        n >= 1
        and len(prompt.positions) >= 1
        and bool((prompt.positions < n).all())
        and prompt.positions[-1] == n - 1
        and prompt.logits.shape == (len(prompt.positions), V)
        and prompt.margins.shape == (m,)
        and bool((prompt.step_positions < m).all())
        and prompt.step_logits.shape == (len(prompt.step_positions), V)
    )
    if not fits:
        raise BundleError(f"prompt {key} whose tensors do not fit together", "one shape", _REMEDY, where=where)
    return prompt
