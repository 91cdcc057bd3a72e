"""What can be measured, by name. Another one is one file with a `Contender` and one line here."""

from __future__ import annotations

from nemotron_export.bench.backends.base import BenchRequest, Contender, ContenderSpec, Description
from nemotron_export.bench.backends.bundle import BundleContender
from nemotron_export.bench.backends.eager import EagerContender

__all__ = ["CONTENDERS", "BenchRequest", "Contender", "ContenderSpec", "Description"]

# what a bundle is held against is named by --against; "bundle" is always measured
CONTENDERS: dict[str, type[Contender]] = {"bundle": BundleContender, "eager": EagerContender}
