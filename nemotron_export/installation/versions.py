"""What a measurement was made with: versions, processor, threads."""

from __future__ import annotations

import os
import platform
from typing import Any

from nemotron_export.installation.doctor import cpu_name, installed_version

__all__ = ["environment", "versions"]

_PACKAGES = (
    "nemotron-export", "torch", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12",
    "tensorrt-cu12-bindings", "numpy", "safetensors", "tokenizers", "sentencepiece",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on; absent ones are left out."""
    return {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}


def environment(threads: int | None) -> dict[str, Any]:
    """Versions, processor and threads (None: the runtime's own choice), for parity.json."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions(),
    }
