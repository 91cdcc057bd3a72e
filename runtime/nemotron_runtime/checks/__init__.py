"""The parity check: replays the reference's prompts on an engine and compares its numbers with eager PyTorch's."""

from __future__ import annotations

from nemotron_runtime.checks.checking import Progress, check
from nemotron_runtime.checks.reference import read_reference, write_reference
from nemotron_runtime.checks.report import ParityReport, ParityRow

__all__ = ["ParityReport", "ParityRow", "Progress", "check", "read_reference", "write_reference"]
