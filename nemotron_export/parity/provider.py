"""Whether bundles of a target can run here: asked before the reference of a parity check is made."""

from __future__ import annotations

import ctypes
import sys

from nemotron_errors import MissingDependencyError, RequestError
from nemotron_graphs.targets import Target
from nemotron_runtime.executors.onnxruntime.cuda import CUDA_PROVIDER, start_cuda

from nemotron_export.installation.extras import install_command, require

__all__ = ["check_runs_here"]

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def check_runs_here(target: Target, where: str, *, building: bool) -> None:
    """Refuses the parity check of a bundle that this machine cannot run.

    Args:
        target: the bundle's.
        where: what the error is about: the bundle, or the target of a build.
        building: whether the check is a build's, which can be made without.

    Raises:
        RequestError: a target whose bundles other software runs.
        MissingDependencyError: no onnxruntime, none with CUDA, no GPU, or CUDA does not start.
    """
    if target.runner:
        remedy = f"{'add --no-parity, and ' if building else ''}run the bundle with {target.runner}"
        expected = f"no such check: {target.runner} runs its bundles"
        raise RequestError(f"a parity check of target {target.name}", expected, remedy, where=where)
    if target.provider == CUDA_PROVIDER:
        _check_cuda(where, building)


def _check_cuda(where: str, building: bool) -> None:
    without = "build with --no-parity"
    require("onnxruntime", f"which runs the bundle for its parity check{f' (or {without})' if building else ''}")
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in available:
        remedy = f"{install_command('ort-gpu')} in place of onnxruntime{f', or {without}' if building else ''}"
        expected = f"{CUDA_PROVIDER}, which runs the bundle for its parity check"
        raise MissingDependencyError(f"providers {', '.join(available)}", expected, remedy, where="onnxruntime")
    if not _gpu_count():
        expected = "a GPU and its driver, which run the bundle for its parity check"
        there = "run `nemotron-export parity` where there is one"
        remedy = f"{without} here, and {there}" if building else there
        raise MissingDependencyError("no NVIDIA GPU", expected, remedy, where=where)
    start_cuda(onnxruntime)


def _gpu_count() -> int:
    """GPUs that NVIDIA's driver shows, none without it; asked without cuda-python, which this target does not need."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
