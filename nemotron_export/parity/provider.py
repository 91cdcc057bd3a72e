"""Whether ONNX Runtime can compute on an NVIDIA GPU here: asked before the reference of a parity check is made."""

from __future__ import annotations

import ctypes
import sys
from typing import NoReturn

from nemotron_errors import MissingDependencyError, RequestError
from nemotron_graphs.targets import Target, get_target
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.onnxruntime.cuda import CUDA_PROVIDER, start_cuda

from nemotron_export.installation.extras import install_command, require

__all__ = ["check_bundle_provider", "check_cuda_provider", "refuse_genai_on_cuda"]

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def check_cuda_provider(target: Target) -> None:
    """Refuses the parity check of a bundle that this machine cannot run; other targets pass.

    Raises:
        MissingDependencyError: no onnxruntime, none with CUDA, no GPU, or CUDA does not start.
    """
    # what other software alone runs is refused elsewhere
    if target.provider == CUDA_PROVIDER and target.runs_here:
        there = "build with --no-parity here, and run `nemotron-export parity` where there is one"
        _check(f"target {target.name}", " (or build with --no-parity)", ", or build with --no-parity", there)


def check_bundle_provider(bundle: Bundle) -> None:
    """Refuses the parity check of a bundle for CUDA that this machine cannot run; other bundles pass.

    Raises:
        MissingDependencyError: as :func:`check_cuda_provider`.
        RequestError: a folder for GenAI on CUDA, which the runtime does not run.
    """
    target = get_target(bundle.manifest.target)
    if target.provider != CUDA_PROVIDER:
        return
    if not target.runs_here:
        refuse_genai_on_cuda(target.name, "run the folder with ONNX Runtime GenAI", str(bundle.directory))
    _check(str(bundle.directory), "", "", "run `nemotron-export parity` where there is one")


def refuse_genai_on_cuda(target: str, remedy: str, where: str) -> NoReturn:
    """Raises RequestError: a parity check of a target whose graphs the runtime does not run."""
    expected = "no such check: the runtime runs GenAI's graphs on the CPU alone"
    raise RequestError(f"a parity check of target {target}", expected, remedy, where=where)


def _check(where: str, or_else: str, or_otherwise: str, there: str) -> None:
    require("onnxruntime", f"which runs the bundle for its parity check{or_else}")
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in available:
        remedy = f"{install_command('ort-gpu')} in place of onnxruntime{or_otherwise}"
        expected = f"{CUDA_PROVIDER}, which runs the bundle for its parity check"
        raise MissingDependencyError(f"providers {', '.join(available)}", expected, remedy, where="onnxruntime")
    if not _gpu_count():
        expected = "a GPU and its driver, which run the bundle for its parity check"
        raise MissingDependencyError("no NVIDIA GPU", expected, there, where=where)
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
