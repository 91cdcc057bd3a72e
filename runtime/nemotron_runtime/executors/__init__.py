"""Sessions: what runs the model's forward pass for the generation loop."""

from __future__ import annotations

from nemotron_runtime.executors.base import Session

__all__ = ["Session"]
