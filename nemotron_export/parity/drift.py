"""Drift: how far a bundle's outputs are from eager PyTorch, position by position.

Shapes: n prompt tokens, k compared positions, V values of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nemotron_runtime.checks.rules import FLIP_MARGIN
from nemotron_runtime.engine.engine import Engine

from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = ["Drift", "PromptDrift", "measure_drift", "spread"]

_POSITIONS = 48
_SCATTER = 4000
_SEED = 5

Decode = Callable[[int], str]


def spread(tokens: int, count: int) -> npt.NDArray[np.int64]:
    """Positions from the first to the last, dense at the beginning: rotary errors grow with the position."""
    if tokens == 1:
        return np.zeros(1, np.int64)
    return np.unique(np.concatenate([[0], np.geomspace(1, tokens - 1, count - 1).round()])).astype(np.int64)


@dataclass(frozen=True)
class PromptDrift:
    """One prompt.

    Attributes:
        tokens: n.
        positions: int64 [k].
        max_error: max |Δ| at each, as a share of the range of all reference outputs.
        rmse: root mean square error at each, in the outputs' own unit.
        eager_rmse: PyTorch's own in the bundle's dtype; None for fp32.
    """

    tokens: int
    positions: npt.NDArray[np.int64]
    max_error: npt.NDArray[np.float64]
    rmse: npt.NDArray[np.float64]
    eager_rmse: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Drift:
    """All prompts.

    Attributes:
        prompts: see :class:`PromptDrift`.
        scatter: a sample of (reference, measured) outputs, float32 [2, m].
        margins: the reference's margin between its two best tokens at each compared position.
        flips: positions where the bundle's best token is another one.
    """

    prompts: tuple[PromptDrift, ...]
    scatter: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]
    flips: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """What parity.json holds."""
        return {
            "prompts": [
                {
                    "tokens": each.tokens,
                    "positions": each.positions.tolist(),
                    "max_error": _finite(each.max_error),
                    "rmse": _finite(each.rmse),
                    "eager_rmse": None if each.eager_rmse is None else _finite(each.eager_rmse),
                }
                for each in self.prompts
            ],
            "scatter": {"reference": _finite(self.scatter[0]), "measured": _finite(self.scatter[1])},
            "flips": list(self.flips),
            "positions_compared": sum(len(each.positions) for each in self.prompts),
            "margins": {"compared": _finite(self.margins)},
        }


def measure_drift(
    engine: Engine,
    models: Sequence[NemotronPreTrainedModel],
    prompts: Sequence[npt.NDArray[np.int64]],
    decode: Decode | None,
    *,
    language_model: bool = True,
) -> Drift:
    """Runs prompts through an engine and through PyTorch and compares them at up to 48 positions of each.

    Args:
        engine: the bundle's.
        models: PyTorch in fp32; for a lower precision also in the bundle's dtype.
        prompts: token ids.
        decode: text of one token; None where there is no tokenizer.
        language_model: whether outputs are logits of tokens, which may flip.
    """
    positions = [spread(len(ids), _POSITIONS) for ids in prompts]
    reference, *low = [
        [_outputs(model, ids, at) for ids, at in zip(prompts, positions, strict=True)] for model in models
    ]
    measured = []
    for ids, at in zip(prompts, positions, strict=True):
        engine.reset(1, len(ids))
        measured.append(engine.prefill_at([ids], [at])[0].copy())
    span = float(max(r.max() for r in reference) - min(r.min() for r in reference)) or 1.0
    own = [_rmse(a, b) for a, b in zip(low[0], reference, strict=True)] if low else [None] * len(prompts)
    made = tuple(
        PromptDrift(len(ids), at, np.abs(found.astype(np.float64) - right).max(-1) / span, _rmse(found, right), eager)
        for ids, at, found, right, eager in zip(prompts, positions, measured, reference, own, strict=True)
    )
    margins, flips = np.zeros(0, np.float32), []
    if language_model:
        # the check's margin, which it lets few tokens exceed; none in fp32
        bound = FLIP_MARGIN * float(np.sqrt(np.mean(np.square(np.concatenate(own))))) if low else 0.0  # type: ignore[arg-type]
        margins = np.concatenate([_margins(right) for right in reference])
        for ids, at, found, right in zip(prompts, positions, measured, reference, strict=True):
            flips += _flips(len(ids), at, found, right, bound, decode)
    return Drift(made, _sample(reference, measured), margins, tuple(flips))


@torch.inference_mode()
def _outputs(
    model: NemotronPreTrainedModel, ids: npt.NDArray[np.int64], at: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    out = model.base_model(torch.from_numpy(ids)[None], use_cache=False)
    return model.head(out.last_hidden_state[:, torch.from_numpy(at)])[0].float().numpy()


def _rmse(found_kV: npt.NDArray[np.float32], right_kV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.sqrt(np.square(found_kV.astype(np.float64) - right_kV).mean(-1))


def _margins(logits_kV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    best_two = np.partition(logits_kV, -2, axis=-1)[:, -2:]
    return best_two[:, 1] - best_two[:, 0]


def _flips(
    tokens: int,
    at: npt.NDArray[np.int64],
    found_kV: npt.NDArray[np.float32],
    right_kV: npt.NDArray[np.float32],
    bound: float,
    decode: Decode | None,
) -> list[dict[str, Any]]:
    flips = []
    for position, found_V, right_V in zip(at.tolist(), found_kV, right_kV, strict=True):
        measured, reference = int(found_V.argmax()), int(right_V.argmax())
        if measured == reference:
            continue
        margin = float(right_V[reference] - right_V[measured])
        flips.append(
            {
                "prompt": tokens,
                "position": position,
                "reference": reference,
                "measured": measured,
                "reference_text": decode(reference) if decode else "",
                "measured_text": decode(measured) if decode else "",
                "margin": margin,
                "allowed": margin <= bound,
            }
        )
    return flips


def _sample(
    reference: Sequence[npt.NDArray[np.float32]], measured: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """As many outputs of each prompt, and their largest and smallest ones among them."""
    generator = np.random.Generator(np.random.Philox(_SEED))
    parts = []
    for right_kV, found_kV in zip(reference, measured, strict=True):
        count = min(_SCATTER // len(reference) - 2, right_kV.size)
        drawn = generator.choice(right_kV.size, count, replace=False)
        chosen = np.unique([*drawn, int(right_kV.argmax()), int(right_kV.argmin())])
        parts.append(np.stack([right_kV.ravel()[chosen], found_kV.ravel()[chosen]]))
    return np.concatenate(parts, axis=1)


def _finite(values: npt.NDArray[Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
