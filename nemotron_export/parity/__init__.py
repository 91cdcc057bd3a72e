"""Proof of a bundle's numbers with torch: makes the reference, and repeats it."""

from __future__ import annotations

from nemotron_export.parity.check import check_parity
from nemotron_export.parity.failure import ParityFailedError
from nemotron_export.parity.reference import Reference, make_reference, reference_for

__all__ = ["ParityFailedError", "Reference", "check_parity", "make_reference", "reference_for"]
