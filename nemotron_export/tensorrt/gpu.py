"""The GPU that engines are built on, and whether its memory holds what they will need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nemotron_errors import MissingDependencyError, ResourceError
from nemotron_formats.dtypes import item_bytes
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.cuda import Device

from nemotron_export.config.config import NemotronConfig
from nemotron_export.installation.doctor import driver_version
from nemotron_export.tensorrt.monitor import run_cancellable
from nemotron_export.tensorrt.shapes import pass_ranges

__all__ = ["DeviceEstimate", "Gpu", "check_device_memory", "current_gpu", "estimate_device", "find_gpu"]

# kernels that CUDA and TensorRT load, staging, and what the allocators round up
_BASE = 600_000_000


@dataclass(frozen=True)
class Gpu:
    """A GPU as engines and their manifest know it.

    Attributes:
        name: what the driver calls it.
        architecture: for example "sm_90".
        multiprocessors: streaming multiprocessors.
        driver: version of the driver, or of the CUDA that it supports where only that could be read.
        free: bytes of its memory that are free.
        total: bytes of its memory.
    """

    name: str
    architecture: str
    multiprocessors: int
    driver: str
    free: int
    total: int

    @property
    def capability(self) -> int:
        """The architecture as a number, for example 90."""
        return int(self.architecture.removeprefix("sm_"))


def find_gpu() -> Gpu:
    """Looks at the first GPU.

    Raises:
        MissingDependencyError: no cuda-python, driver or GPU; names the target that needs none.
    """
    try:
        # in a thread: which context is current is a thread's own, and this one is given back
        return run_cancellable(_look, lambda: None)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            error.found, "an NVIDIA GPU of the kind that shall run the bundle: TensorRT measures its kernels there",
            f"{error.remedy}; --target tensorrt-rtx builds without a GPU", where="--target tensorrt",
        ) from error  # fmt: skip


def _look() -> Gpu:
    with Device() as device:
        free, total = device.memory()
        driver = driver_version() or device.driver_version
        return Gpu(device.name, device.architecture, device.multiprocessors, driver, free, total)


@contextmanager
def current_gpu() -> Iterator[Device]:
    """The first GPU's context, current in this thread inside."""
    with Device() as device:
        yield device


@dataclass(frozen=True)
class DeviceEstimate:
    """Upper estimates in bytes of the GPU memory that a session takes at the limits.

    Attributes:
        weights: of the checkpoint.
        caches: keys and values of all sequences at their capacity.
        workspace: activations of a prefill pass, and its logits.
    """

    weights: int
    caches: int
    workspace: int

    @property
    def memory(self) -> int:
        """All together."""
        return _BASE + self.weights + self.caches + self.workspace


def estimate_device(config: NemotronConfig, weight_bytes: int, limits: Limits, dtype: str) -> DeviceEstimate:
    """Estimates a session.

    Args:
        config: the checkpoint's config.
        weight_bytes: what the GPU holds of its tensors: their size, or twice that where both engines have their own.
        limits: of the bundle.
        dtype: run dtype.
    """
    item = item_bytes(dtype)
    E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    H, G = config.num_attention_heads, config.num_key_value_heads
    caches = 2 * config.num_hidden_layers * G * D * limits.max_seq_len * limits.max_batch * item
    sizes = pass_ranges(limits)
    tokens, positions = (sizes["batch"].most * sizes[each].most for each in ("tokens", "positions"))
    # the widest step: residual and normed stream, and the MLP's inner one before and after its activation,
    # or queries, keys and values packed, rotated and attended
    widest = 2 * E + max(3 * F, 3 * H * D + 2 * G * D)
    # in the run dtype and in float32, there and in the session's own buffer
    logits = positions * config.vocab_size * (item + 2 * 4)
    return DeviceEstimate(weight_bytes, caches, tokens * widest * item + logits)


def check_device_memory(needed: DeviceEstimate, gpu: Gpu, *, first: str = "") -> None:
    """Compares an estimate with what is free.

    Args:
        needed: the estimate.
        gpu: where it must fit.
        first: what the user may do before anything else.

    Raises:
        ResourceError: naming the numbers.
    """
    if needed.memory <= gpu.free:
        return
    parts = (
        f"weights {_gb(needed.weights)}, caches at the limits {_gb(needed.caches)}, "
        f"activations and logits {_gb(needed.workspace)}"
    )
    raise ResourceError(
        f"{_gb(gpu.free)} of {_gb(gpu.total)} free on the {gpu.name}", f"about {_gb(needed.memory)} ({parts})",
        f"{first}end what else uses the GPU, or lower --max-batch, --max-seq-len or --prefill-chunk",
        where="GPU memory",
    )  # fmt: skip


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
