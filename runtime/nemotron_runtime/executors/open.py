"""Chooses the session that a bundle names."""

from __future__ import annotations

from collections.abc import Callable

from nemotron_errors import BundleError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.base import Session
from nemotron_runtime.executors.genai import GenaiSession
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeSession
from nemotron_runtime.executors.onnxruntime.cuda import OnnxRuntimeCudaSession

__all__ = ["open_session"]


def _open_tensorrt(bundle: Bundle, threads: int | None) -> Session:
    # CUDA's and TensorRT's layers, which nothing else needs
    from nemotron_runtime.executors.tensorrt.executor import TensorRTSession

    return TensorRTSession(bundle, threads)


def _refuse_rtx(bundle: Bundle, threads: int | None) -> Session:
    raise BundleError(
        "engines of TensorRT for RTX", "a bundle that this runtime runs",
        "run them with NVIDIA's TensorRT for RTX, or build for another target", where=str(bundle.directory),
    )  # fmt: skip


# what a manifest's session.executor may be; the strict reader refuses others
_KINDS: dict[str, Callable[[Bundle, int | None], Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "onnxruntime-cuda": OnnxRuntimeCudaSession,
    "genai": GenaiSession,
    "tensorrt": _open_tensorrt,
    "tensorrt-rtx": _refuse_rtx,
}


def open_session(bundle: Bundle, threads: int | None = None) -> Session:
    """The session of a bundle.

    Raises:
        MissingDependencyError: what it needs is not installed.
        BundleError: see the session.
    """
    return _KINDS[bundle.manifest.session.executor](bundle, threads)
