"""Proof of a bundle's numbers with torch: makes the reference, and repeats it."""

from __future__ import annotations

from nemotron_export.parity.check import check_parity
from nemotron_export.parity.failure import ParityFailedError
from nemotron_export.parity.reference import make_reference, reference_for

__all__ = ["ParityFailedError", "check_parity", "make_reference", "reference_for"]
