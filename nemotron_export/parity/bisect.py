"""Bisection: the first layer and op at which an artefact leaves eager PyTorch.

Errors are max |Δ| over a point's values at the chosen positions, divided by the range of PyTorch's own values there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_formats.weights import format_named
from nemotron_runtime.bundle.folder import Bundle

from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.parity.drift import spread
from nemotron_export.parity.points import Point, head_points, layer_outputs, layer_points
from nemotron_export.parity.probe import Probe
from nemotron_export.parity.recording import Recorder, Values
from nemotron_export.progress import Progress, silent

__all__ = ["Bisection", "PointError", "bisect"]

# A value that fp32 computes in another order is off by some 1e-7 of its range; a mistake is off by far more.
FP32_TOLERANCE = 1e-5
# In a lower precision, so many times PyTorch's own error in it.
LOW_PRECISION_FACTOR = 3.0
_POSITIONS = 12


@dataclass(frozen=True)
class PointError:
    """One compared value.

    Attributes:
        stage: "prefill" (the prompt but its last token) or "decode" (that token after a cache).
        computed_by: type of the artefact's node.
        error: see the module's head.
    """

    stage: str
    point: str
    layer: int | None
    computed_by: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """For parity.json."""
        return {**asdict(self), "error": self.error if math.isfinite(self.error) else None, "passed": self.passed}


@dataclass(frozen=True)
class Bisection:
    """What was compared and where the artefact leaves.

    Attributes:
        layers: the coarse walk: embedding, what leaves each layer, final norm and head, of both stages.
        inside: the points of the first layer that is off, in order.
        first: the first point that is off; None where none is.
        before: the largest error before it.
        ops: what happens between the last good point and the first bad one, fused ops included.
    """

    tokens: int
    layers: tuple[PointError, ...]
    inside: tuple[PointError, ...]
    first: PointError | None
    before: float
    ops: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What parity.json holds; an error that is not finite becomes null."""
        return {
            **vars(self),
            "layers": [error.to_dict() for error in self.layers],
            "inside": [error.to_dict() for error in self.inside],
            "first": self.first and self.first.to_dict(),
            "ops": list(self.ops),
        }


class _Stage:
    """Both sides of one stage, run as often as points are asked for."""

    def __init__(
        self, bundle: Bundle, models: Sequence[NemotronPreTrainedModel], ids: npt.NDArray[np.int64], threads: int | None
    ) -> None:
        self.bundle, self.models, self.threads = bundle, models, threads
        self.parts = {"prefill": (ids[:-1], 0), "decode": (ids[-1:], len(ids) - 1)}
        self.names = Probe(bundle, 1).names
        self.floor = _tolerance_of(bundle)

    def compare(self, stage: str, points: Sequence[Point]) -> list[PointError]:
        """Errors of those points that the artefact has."""
        present = [point for point in points if point.found_in(self.names) is not None]
        ids, start = self.parts[stage]
        positions = spread(len(ids), _POSITIONS)
        probe = Probe(self.bundle, start + len(ids), self.threads)
        recorders = [Recorder(model) for model in self.models]
        if stage == "decode":
            earlier, _ = self.parts["prefill"]
            last = np.array([len(earlier) - 1])
            probe.feed(earlier, 0, [], last)
            for recorder in recorders:
                recorder.feed(earlier, [], last)
        found = probe.feed(ids, start, present, positions)
        reference, *low = [recorder.feed(ids, present, positions) for recorder in recorders]
        return [
            PointError(
                stage,
                point.name,
                point.layer,
                probe.op_of(point.found_in(self.names) or ""),
                _error(found[point.name], reference[point.name]),
                _tolerance(point, reference, low, self.floor),
            )
            for point in present
        ]


def bisect(
    bundle: Bundle,
    models: Sequence[NemotronPreTrainedModel],
    ids: npt.NDArray[np.int64],
    threads: int | None = None,
    progress: Progress = silent,
) -> Bisection:
    """Walks an ONNX Runtime bundle against eager PyTorch: layer by layer, then inside the first bad one.

    Args:
        models: the reference in fp32; for a bundle of a lower precision, also in the bundle's dtype.
        ids: int64 [n], n at least 2.
    """
    task, layers = bundle.manifest.task, bundle.manifest.model.num_layers
    stages = _Stage(bundle, models, ids, threads)
    coarse = [*layer_outputs(task, layers), *head_points(task, bundle.manifest.head.output)]
    walked: list[PointError] = []
    for number, stage in enumerate(stages.parts):
        progress(f"bisect, {stage}", number, len(stages.parts))
        errors = stages.compare(stage, coarse)
        walked += errors
        bad = next((error for error in errors if not error.passed), None)
        if bad is None:
            continue
        inside, points = errors, coarse
        if bad.layer is not None:
            points = layer_points(task, bad.layer)
            inside = stages.compare(stage, points)
        first = next((error for error in inside if not error.passed), bad)
        # what enters the layer counts as an error before it, where all inside came earlier
        earlier = errors[: errors.index(bad)] + (inside[: inside.index(first)] if first in inside else [])
        before = max((error.error for error in earlier), default=0.0)
        return Bisection(len(ids), tuple(walked), tuple(inside), first, before, _between(points, inside, first))
    return Bisection(len(ids), tuple(walked), (), None, max(error.error for error in walked), ())


def _tolerance_of(bundle: Bundle) -> float:
    """What a value may be off by that PyTorch computes without an error of its own."""
    stored = bundle.manifest.quantization
    if stored is None:
        return FP32_TOLERANCE
    return format_named(stored.format, str(bundle.directory)).budget.value


def _error(found: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    if not np.isfinite(found).all():
        return float("nan")
    span = float(reference.max() - reference.min())
    return float(np.abs(found - reference).max()) / (span or 1.0)


def _tolerance(point: Point, reference: Values, low: Sequence[Values], floor: float) -> float:
    # a layer that computes in fp32 after its first projection calls down_proj by another way than its module
    own = max(
        (_error(values[point.name], reference[point.name]) for values in low if point.name in values), default=0.0
    )
    return max(floor, LOW_PRECISION_FACTOR * own)


def _between(points: Sequence[Point], inside: Sequence[PointError], first: PointError) -> tuple[str, ...]:
    """Ops of the points after the last that was compared and good, up to the first bad one."""
    compared = {error.point for error in inside}
    ops: list[str] = []
    for point in points:
        if point.name == first.point:
            return (*ops, point.op)
        ops = [] if point.name in compared else [*ops, point.op]
    return (first.point.partition(": ")[2],)
