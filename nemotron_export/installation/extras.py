"""Which optional package belongs to which extra, and the error for one that is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nemotron_errors import MissingDependencyError

__all__ = ["EXTRAS", "PROVEN", "extra_of", "install_command", "missing_dependency", "require"]

# Extra -> {import name: distribution name}.
EXTRAS: dict[str, dict[str, str]] = {
    "build": {
        "torch": "torch",
        "onnx": "onnx",
        "onnx_ir": "onnx-ir",
        "ml_dtypes": "ml-dtypes",
        "huggingface_hub": "huggingface-hub",
        **({"triton": "triton"} if sys.platform == "linux" else {}),
    },
    "ort": {"onnxruntime": "onnxruntime"},
    "ort-gpu": {"onnxruntime": "onnxruntime-gpu"},  # the same module, for CUDA
    "genai": {"onnxruntime_genai": "onnxruntime-genai"},
    "genai-cuda": {"onnxruntime_genai": "onnxruntime-genai-cuda"},  # the same module, for CUDA
    "tensorrt": {"tensorrt": "tensorrt-cu12", "cuda": "cuda-bindings"},
    "tensorrt-rtx": {
        "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
        "tensorrt_rtx_libs": "tensorrt-rtx-cu13-libs",
    },
    "report": {"matplotlib": "matplotlib"},
}

# Extra -> the version (major.minor) of what computes on GPUs that this project was run with; NVIDIA's builders are used
# with a warning in other versions.
PROVEN = {"tensorrt": "10.6", "tensorrt-rtx": "1.7", "ort-gpu": "1.31", "genai-cuda": "0.18"}


def extra_of(module: str) -> str | None:
    """The extra that brings a module (its top-level name counts); None where no extra does."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def install_command(*extras: str) -> str:
    """The `pip install` line that brings the extras."""
    return f'pip install "nemotron-export[{",".join(extras)}]"'


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """What to tell the user of a failed import; None where the module belongs to no extra (a bug, not a mistake)."""
    extra = extra_of(error.name or "")
    if extra is None:
        return None
    return MissingDependencyError(
        f"no package {error.name}", f"the extra '{extra}'", install_command(extra), where="this Python environment"
    )


def require(module: str, why: str) -> None:
    """Raises MissingDependencyError where an optional module is not installed."""
    # None in sys.modules is Python's own way to say that a module must not be imported
    if sys.modules.get(module, module) is None or (module not in sys.modules and find_spec(module) is None):
        extra = extra_of(module)
        assert extra is not None
        raise MissingDependencyError(
            f"no package {module}", f"it, {why}", install_command(extra), where="this Python environment"
        )
