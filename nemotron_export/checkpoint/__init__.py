"""Checkpoints: strict index over safetensors files with nothing loaded, content scan, hub ids."""

from __future__ import annotations

from nemotron_errors import CheckpointError

from nemotron_export.checkpoint.checkpoint import Checkpoint
from nemotron_export.checkpoint.expected import TASKS, expected_tensors
from nemotron_export.checkpoint.safetensors_header import Shard, read_header
from nemotron_export.checkpoint.scan import ScanReport, scan

__all__ = [
    "TASKS",
    "Checkpoint",
    "CheckpointError",
    "ScanReport",
    "Shard",
    "expected_tensors",
    "read_header",
    "scan",
]
