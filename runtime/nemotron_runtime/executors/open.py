"""Chooses the executor that a bundle names."""

from __future__ import annotations

from collections.abc import Callable

from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.executor import Executor
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor
from nemotron_runtime.executors.onnxruntime.cuda import OnnxRuntimeCudaExecutor
from nemotron_runtime.executors.onnxruntime.genai import GenaiExecutor

__all__ = ["open_executor"]


def _open_tensorrt(bundle: Bundle, threads: int | None) -> Executor:
    # CUDA's and TensorRT's layers, which nothing else needs
    from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor

    return TensorRTExecutor(bundle, threads)


def _refuse_rtx(bundle: Bundle, threads: int | None) -> Executor:
    raise BundleError(
        "engines of TensorRT for RTX", "a bundle that this runtime runs",
        "run them with NVIDIA's TensorRT for RTX, or build for another target", where=str(bundle.directory),
    )  # fmt: skip


# what a manifest's session.executor may be; the strict reader refuses others
_EXECUTORS: dict[str, Callable[[Bundle, int | None], Executor]] = {
    "onnxruntime": OnnxRuntimeExecutor,
    "onnxruntime-cuda": OnnxRuntimeCudaExecutor,
    "genai": GenaiExecutor,
    "tensorrt": _open_tensorrt,
    "tensorrt-rtx": _refuse_rtx,
}


def open_executor(bundle: Bundle, threads: int | None = None) -> Executor:
    """The executor of a bundle.

    Args:
        bundle: the bundle.
        threads: CPU threads within an op; the executor's choice where None.

    Raises:
        MissingDependencyError: what it needs is not installed.
        BundleError: see the executor.
    """
    return _EXECUTORS[bundle.manifest.session.executor](bundle, threads)
