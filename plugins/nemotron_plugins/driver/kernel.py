"""Loads cubins and launches kernels by their records, through CUDA's driver API; needs neither Triton nor PyTorch."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from nemotron_errors import BundleError

from nemotron_plugins.driver.cuda import Driver, load_driver
from nemotron_plugins.launches.launch import LaunchRecord

__all__ = ["LoadedKernel", "copy_on_device"]

_REBUILD = "build the bundle again on the GPU that shall run it"
# one argument each, widened to eight bytes; the driver reads only those of its type
_FORMATS = {"i32": "i4x", "u32": "I4x", "i64": "q", "u64": "Q", "fp32": "f4x"}
_SLOT_BYTES = 8
# more dynamic shared memory than this must be asked for
_PLAIN_SHARED_BYTES = 48 << 10


class LoadedKernel:
    """A kernel that can be launched on the GPU whose context is the calling thread's. May be shared by threads.

    The cubin is handed to the driver once per process, whatever number of objects hold it: as a library, which the
    driver loads into every context that launches its kernel, those of later contexts too.

    Args:
        record: how it is launched.
        cubin: the code.

    Raises:
        BundleError: a cubin that is not the record's, or a record that asks for what this driver does not give.
    """

    def __init__(self, record: LaunchRecord, cubin: bytes) -> None:
        found = hashlib.sha256(cubin).hexdigest()
        if found != record.cubin_sha256:
            expected = f"SHA-256 {record.cubin_sha256}, as its record says"
            found = f"a cubin of {len(cubin)} bytes with SHA-256 {found}"
            raise BundleError(found, expected, _REBUILD, where=record.kernel)
        scratch = {name: size for name, size in record.scratch_bytes.items() if size}
        if scratch:
            found = ", ".join(f"{size} bytes of {name}" for name, size in scratch.items())
            raise BundleError(found, "a kernel without scratch memory", _REBUILD, where=record.kernel)
        self.record = record
        self._cubin = cubin
        self._arguments = struct.Struct("=" + "".join(_format(record, kind) for _, kind in record.arguments))
        self._hidden = bytes(_SLOT_BYTES * len(record.hidden_arguments))
        self._handles: dict[int, int] = {}

    def load(self) -> int:
        """Loads the kernel for the GPU of the current context, unless that was done; returns the driver's handle.

        Raises:
            MissingDependencyError: no cuda-python or no driver.
            BundleError: a kernel for another architecture, or code that the driver refuses.
            ResourceError: any other failure of the driver.
        """
        kernels = _loaded_kernels()
        device = int(kernels.driver("CtxGetDevice", where=self.record.kernel))
        if device not in self._handles:
            self._handles[device] = kernels.handle(self.record, self._cubin, device)
        return self._handles[device]

    def launch(self, stream: int, arguments: Sequence[int | float], **sizes: int) -> None:
        """Puts one launch into a stream, or into the graph that records it.

        Args:
            stream: the driver's handle.
            arguments: in the order of ``record.arguments``: addresses and numbers.
            sizes: of this call, for the grid, for example ``B=1, S=1``.

        Raises:
            MissingDependencyError, BundleError: as :meth:`load`.
            ResourceError: the driver refuses the launch.
        """
        record, handle = self.record, self.load()
        assert len(arguments) == len(record.arguments), f"{record.kernel} takes {len(record.arguments)} arguments"
        packed = self._arguments.pack(*arguments) + self._hidden
        # of this call alone: threads share the object
        values = ctypes.create_string_buffer(packed, len(packed))
        first = ctypes.addressof(values)
        addresses = (ctypes.c_void_p * (len(packed) // _SLOT_BYTES))(*range(first, first + len(packed), _SLOT_BYTES))
        driver = _loaded_kernels().driver
        config = _config(driver.api, record, stream, record.grid_of(**sizes))
        driver("LaunchKernelEx", config, handle, ctypes.addressof(addresses), 0, where=record.kernel)


def copy_on_device(stream: int, target: int, source: int, size: int) -> None:
    """Puts a copy of ``size`` bytes within the GPU's memory into a stream.

    Raises:
        MissingDependencyError: no cuda-python or no driver.
        ResourceError: the driver refuses the copy.
    """
    load_driver()("MemcpyDtoDAsync", target, source, size, stream, where="copy")


def _format(record: LaunchRecord, kind: str) -> str:
    if kind.startswith("*"):
        return "Q"
    if kind not in _FORMATS:
        expected = f"pointers, {', '.join(_FORMATS)}"
        raise BundleError(f"an argument of type {kind}", expected, _REBUILD, where=record.kernel)
    return _FORMATS[kind]


class _LoadedKernels:
    """The kernels that the driver has loaded in this process."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._kernels: dict[tuple[str, str], int] = {}
        self._libraries: list[Any] = []
        self._lock = threading.Lock()

    def handle(self, record: LaunchRecord, cubin: bytes, device: int) -> int:
        """The handle of a kernel that may run on ``device``."""
        driver, where = self.driver, record.kernel
        kinds = driver.api.CUdevice_attribute
        parts = (getattr(kinds, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        major, minor = (int(driver("DeviceGetAttribute", part, device, where=where)) for part in parts)
        if record.architecture != f"sm_{major}{minor}":
            found, expected = f"kernels for {record.architecture}", f"kernels for sm_{major}{minor}, this GPU's"
            raise BundleError(found, expected, _REBUILD, where=record.kernel)
        with self._lock:
            key = (record.cubin_sha256, record.entry)
            if key not in self._kernels:
                library = driver("LibraryLoadData", cubin, [], [], 0, [], [], 0, where=where)
                self._libraries.append(library)
                self._kernels[key] = int(driver("LibraryGetKernel", library, record.entry.encode(), where=where))
            handle = self._kernels[key]
        if record.shared_bytes > _PLAIN_SHARED_BYTES:
            attribute = driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver(
                "KernelSetAttribute", attribute, record.shared_bytes, driver.api.CUkernel(handle), device, where=where
            )
        return handle


def _config(api: Any, record: LaunchRecord, stream: int, grid: tuple[int, ...]) -> Any:
    """The launch's grid, block, shared memory, stream and attributes."""
    config = api.CUlaunchConfig()
    blocks = (*grid, 1, 1)[:3]
    # a rule's grid counts clusters
    config.gridDimX, config.gridDimY, config.gridDimZ = (
        number * size for number, size in zip(blocks, record.cluster, strict=True)
    )
    config.blockDimX, config.blockDimY, config.blockDimZ = 32 * record.num_warps, 1, 1
    config.sharedMemBytes = record.shared_bytes
    config.hStream = stream
    attributes = []
    if record.pdl:
        attribute = api.CUlaunchAttribute()
        attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    if tuple(record.cluster) != (1, 1, 1):
        attribute = api.CUlaunchAttribute()
        attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster = attribute.value.clusterDim
        cluster.x, cluster.y, cluster.z = record.cluster
        attributes.append(attribute)
    config.attrs = attributes
    config.numAttrs = len(attributes)
    return config


@cache
def _loaded_kernels() -> _LoadedKernels:
    return _LoadedKernels(load_driver())
