"""Speed of bundles and of what they are held against: one run, one process each, taking turns."""

from __future__ import annotations

from nemotron_export.bench.results import BackendResult, BenchResult, Measurement, Spread
from nemotron_export.bench.run import BenchOptions, run_bench

__all__ = ["BackendResult", "BenchOptions", "BenchResult", "Measurement", "Spread", "run_bench"]
