"""Checkpoints: strict index over safetensors files with nothing loaded, content scan, hub ids."""

from __future__ import annotations

from nemotron_errors import CheckpointError

from .checkpoint import Checkpoint
from .expected import TASKS, expected_tensors
from .index import Shard
from .safetensors_header import TensorEntry, read_header
from .scan import ScanCancelledError, ScanReport, scan

__all__ = [
    "TASKS",
    "Checkpoint",
    "CheckpointError",
    "ScanCancelledError",
    "ScanReport",
    "Shard",
    "TensorEntry",
    "expected_tensors",
    "read_header",
    "scan",
]
