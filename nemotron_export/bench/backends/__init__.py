"""What can be measured, by name. Another one is one file with a `Backend` and one line here."""

from __future__ import annotations

from nemotron_export.bench.backends.base import Backend, BackendSpec, BenchRequest, Description
from nemotron_export.bench.backends.bundle import BundleBackend
from nemotron_export.bench.backends.eager import EagerBackend

__all__ = ["BACKENDS", "Backend", "BackendSpec", "BenchRequest", "Description"]

# what a bundle is compared with is named by --against; "bundle" is always measured
BACKENDS: dict[str, type[Backend]] = {"bundle": BundleBackend, "eager": EagerBackend}
