"""The judge: drives a session over the reference's prompts and holds its numbers against eager PyTorch's."""

from __future__ import annotations

from nemotron_runtime.checks.judging import Progress, judge
from nemotron_runtime.checks.reference import read_reference, write_reference
from nemotron_runtime.checks.report import ParityReport, ParityRow

__all__ = ["ParityReport", "ParityRow", "Progress", "judge", "read_reference", "write_reference"]
