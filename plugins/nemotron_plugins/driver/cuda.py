"""Calls of CUDA's driver API through cuda-python, every result checked: for kernels' launches and for the runtime."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from nemotron_errors import BundleError, MissingDependencyError, NemotronError, ResourceError

__all__ = ["Driver", "cuda_error", "load_driver"]

_INSTALL = 'pip install "nemotron-export[tensorrt]"'
_NO_DRIVER = ("CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_STUB_LIBRARY",
              "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE")  # fmt: skip
_BAD_IMAGE = ("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_SOURCE",
              "CUDA_ERROR_NOT_FOUND", "CUDA_ERROR_INVALID_PTX")  # fmt: skip
# after these the context is lost: what comes later fails too
_LOST = ("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_MISALIGNED_ADDRESS",
         "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_ECC_UNCORRECTABLE",
         "CUDA_ERROR_HARDWARE_STACK_ERROR")  # fmt: skip


class Driver:
    """The driver's functions by name, without the prefix ``cu``: ``driver("MemAlloc", size)``.

    Attributes:
        api: cuda-python's module ``cuda.bindings.driver``, for its enumerations.
    """

    def __init__(self, api: Any) -> None:
        self.api = api

    def __call__(self, function: str, *arguments: Any, where: str = "CUDA") -> Any:
        """Calls ``cu<function>``: nothing, the value, or a tuple of the values that it gives.

        Args:
            function: its name without the prefix.
            arguments: in its order, without those that it returns by.
            where: what an error names, for example a kernel.

        Raises:
            ResourceError: any result but success.
            BundleError: code that the driver does not load.
            MissingDependencyError: no device, or a driver that does not fit.
        """
        result, *values = getattr(self.api, f"cu{function}")(*arguments)
        if result != self.api.CUresult.CUDA_SUCCESS:
            raise cuda_error(self.name_of(result), function, where)
        return None if not values else values[0] if len(values) == 1 else tuple(values)

    def try_call(self, function: str, *arguments: Any) -> tuple[str | None, Any]:
        """As a call, for the errors that the caller words better: (name of the error or None, value)."""
        result, *values = getattr(self.api, f"cu{function}")(*arguments)
        if result != self.api.CUresult.CUDA_SUCCESS:
            return self.name_of(result), None
        return None, values[0] if values else None

    @staticmethod
    def name_of(result: Any) -> str:
        """CUDA's name of a result."""
        return str(getattr(result, "name", result))


def cuda_error(name: str, function: str, where: str = "CUDA") -> NemotronError:
    """The error for a result that is not success."""
    found = f"{name} from cu{function}"
    if name in _NO_DRIVER:
        remedy = "`nvidia-smi` tells what the driver sees; install a driver that fits the GPU and this CUDA"
        return MissingDependencyError(found, "an NVIDIA GPU and its driver", remedy, where=where)
    if name in _BAD_IMAGE:
        remedy = "build the bundle again on the GPU that shall run it"
        return BundleError(found, "a kernel that the driver loads", remedy, where=where)
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        remedy = "end what else uses the GPU, or lower --max-batch or --max-seq-len"
        return ResourceError(found, "enough GPU memory", remedy, where=where)
    if name in _LOST:
        remedy = "start the process again; if it comes back, run `compute-sanitizer` on it and report the kernel"
        return ResourceError(found, "kernels and copies that stay inside their memory", remedy, where=where)
    remedy = "see CUDA's description of the error; `nemotron-export doctor` tells what is installed"
    return ResourceError(found, "CUDA_SUCCESS", remedy, where=where)


@cache
def load_driver() -> Driver:
    """Imports cuda-python and initializes the driver; once per process.

    Raises:
        MissingDependencyError: no cuda-python, no driver library, no device.
    """
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingDependencyError(
            f"no cuda.bindings ({error})", "cuda-python, which drives the GPU", _INSTALL, where="cuda.bindings"
        ) from error
    driver = Driver(api)
    try:
        driver("Init", 0)
    except RuntimeError as error:
        # cuda-python's own error where it finds no libcuda
        remedy = "install NVIDIA's driver (`nvidia-smi` must work)"
        raise MissingDependencyError(f"no CUDA driver ({error})", "libcuda", remedy, where="CUDA") from error
    return driver
