"""Speed of bundles and of what they are compared with: one run, one process each, one at a time."""

from __future__ import annotations

from nemotron_export.bench.options import BenchOptions
from nemotron_export.bench.results import BackendResult, BenchResult, Measurement, Spread
from nemotron_export.bench.run import run_bench

__all__ = ["BackendResult", "BenchOptions", "BenchResult", "Measurement", "Spread", "run_bench"]
