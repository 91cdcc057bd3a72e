"""A checkpoint → a bundle: limits, trace, lowering, files, proof."""

from __future__ import annotations

from nemotron_export.building.limits import DEFAULT_MAX_BATCH, DEFAULT_PREFILL_CHUNK, choose_limits
from nemotron_export.building.pipeline import build
from nemotron_export.building.weight_files import WEIGHT_MODES

__all__ = ["DEFAULT_MAX_BATCH", "DEFAULT_PREFILL_CHUNK", "WEIGHT_MODES", "build", "choose_limits"]
