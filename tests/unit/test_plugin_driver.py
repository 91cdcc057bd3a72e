"""Launches by records through CUDA's driver API, with a driver that keeps what it was told."""

# ruff: noqa: N802 (the driver's names)
from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import struct
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nemotron_errors import BundleError, MissingDependencyError, NemotronError, ResourceError
from nemotron_plugins.driver import kernel as plugin_driver
from nemotron_plugins.driver.cuda import load_driver
from nemotron_plugins.driver.kernel import LoadedKernel, copy_on_device
from nemotron_plugins.launches.launch import CompiledKernel, GridAxis, LaunchRecord
from nemotron_plugins.library import KernelLibrary

CUBIN = b"\x7fELF\0cubin\0"
RECORD = LaunchRecord(
    kernel="a_kernel",
    entry="a_kernel_entry",
    architecture="sm_90",
    dtype="bfloat16",
    arguments=(("x_ptr", "*bf16"), ("rows", "i32"), ("scale", "fp32"), ("offset", "i64")),
    hidden_arguments=("global_scratch", "profile_scratch"),
    constexprs={},
    grid=(GridAxis(3, ("B", "S"), 2), GridAxis(5)),
    num_warps=4,
    num_stages=1,
    shared_bytes=1000,
    cluster=(1, 1, 1),
    scratch_bytes={"global_scratch": 0, "profile_scratch": 0},
    scratch_alignment={},
    fp_fusion=True,
    pdl=False,
    triton="3.6.0",
    cubin_sha256=hashlib.sha256(CUBIN).hexdigest(),
)

CUresult = IntEnum(
    "CUresult",
    {"CUDA_SUCCESS": 0, "CUDA_ERROR_NO_DEVICE": 100, "CUDA_ERROR_INVALID_IMAGE": 200, "CUDA_ERROR_INVALID_CONTEXT": 201,
     "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": 701},
)  # fmt: skip


class _Attribute:
    def __init__(self) -> None:
        self.id = None
        self.value = SimpleNamespace(clusterDim=SimpleNamespace())


class RecordingDriver:
    """``cuda.bindings.driver`` over one GPU; ``fails`` maps a function to its result."""

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")
    CUlaunchAttributeID = SimpleNamespace(
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="pdl", CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION="cluster"
    )
    CUlaunchConfig, CUlaunchAttribute, CUkernel = SimpleNamespace, _Attribute, int

    def __init__(self) -> None:
        self.fails: dict[str, CUresult] = {}
        self.device, self.capability = 0, {"major": 9, "minor": 0}
        self.loaded: list[bytes] = []
        self.shared: list[tuple[int, int, int]] = []
        self.launches: list[tuple[Any, int, bytes]] = []
        self.copies: list[tuple[int, ...]] = []

    def _result(self, function: str, *values: Any) -> tuple[Any, ...]:
        found = self.fails.get(function, CUresult.CUDA_SUCCESS)
        return (found, *values) if found == CUresult.CUDA_SUCCESS else (found, *(None for _ in values))

    def cuInit(self, flags: int) -> Any:
        return self._result("Init")

    def cuCtxGetDevice(self) -> Any:
        return self._result("CtxGetDevice", self.device)

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> Any:
        return self._result("DeviceGetAttribute", self.capability[attribute])

    def cuLibraryLoadData(self, code: bytes, *options: Any) -> Any:
        assert options == ([], [], 0, [], [], 0)
        self.loaded.append(code)
        return self._result("LibraryLoadData", 500 + len(self.loaded))

    def cuLibraryGetKernel(self, library: int, name: bytes) -> Any:
        assert name == RECORD.entry.encode()
        return self._result("LibraryGetKernel", library + 100)

    def cuKernelSetAttribute(self, attribute: str, value: int, kernel: int, device: int) -> Any:
        assert attribute == "shared"
        self.shared.append((value, kernel, device))
        return self._result("KernelSetAttribute")

    def cuLaunchKernelEx(self, config: Any, kernel: int, addresses: int, extra: int) -> Any:
        assert extra == 0
        count = len(RECORD.arguments) + 2
        pointers = (ctypes.c_void_p * count).from_address(addresses)
        self.launches.append((config, kernel, b"".join(ctypes.string_at(each, 8) for each in pointers)))
        return self._result("LaunchKernelEx")

    def cuMemcpyDtoDAsync(self, *arguments: int) -> Any:
        self.copies.append(arguments)
        return self._result("MemcpyDtoDAsync")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    made = RecordingDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", made)  # type: ignore[arg-type]
    caches = (plugin_driver._loaded_kernels, load_driver)
    for each in caches:
        each.cache_clear()
    yield made
    for each in caches:
        each.cache_clear()


def _launch(**changes: Any) -> None:
    kernel = LoadedKernel(dataclasses.replace(RECORD, **changes), CUBIN)
    kernel.launch(77, [0x7F0000001000, -5, 0.5, -(1 << 40)], B=2, S=3)


def test_arguments_reach_the_driver_by_their_types_and_hidden_ones_are_null(driver: RecordingDriver) -> None:
    _launch()
    ((config, kernel, raw),) = driver.launches
    assert kernel == 601
    assert struct.unpack("=Qi4xf4xqQQ", raw) == (0x7F0000001000, -5, 0.5, -(1 << 40), 0, 0)
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (9, 5, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (128, 1, 1)
    assert (config.sharedMemBytes, config.hStream) == (1000, 77)
    assert (config.attrs, config.numAttrs) == ([], 0)
    assert driver.shared == []


def test_attributes_of_a_launch(driver: RecordingDriver) -> None:
    _launch(pdl=True, cluster=(2, 1, 1), shared_bytes=200_000)
    config = driver.launches[0][0]
    pdl, cluster = config.attrs
    assert config.numAttrs == 2
    assert (pdl.id, pdl.value.programmaticStreamSerializationAllowed) == ("pdl", 1)
    assert (cluster.id, vars(cluster.value.clusterDim)) == ("cluster", {"x": 2, "y": 1, "z": 1})
    # a rule's grid counts clusters
    assert (config.gridDimX, config.gridDimY) == (18, 5)
    assert driver.shared == [(200_000, 601, 0)]


def test_a_cubin_is_loaded_once_and_prepared_on_each_device(driver: RecordingDriver) -> None:
    kernels = [LoadedKernel(dataclasses.replace(RECORD, shared_bytes=49_153), CUBIN) for _ in range(2)]
    for device in (0, 1):
        driver.device = device
        for kernel in (*kernels, *kernels):
            assert kernel.load() == 601
    assert driver.loaded == [CUBIN]
    assert sorted(driver.shared) == [(49_153, 601, 0)] * 2 + [(49_153, 601, 1)] * 2


def test_a_kernel_that_is_not_its_records_is_refused(driver: RecordingDriver) -> None:
    for cubin in (CUBIN[:-3], CUBIN + b"\0", b""):
        with pytest.raises(BundleError, match=f"cubin of {len(cubin)} bytes.*expected SHA-256.*build the bundle again"):
            LoadedKernel(RECORD, cubin)
    with pytest.raises(BundleError, match=r"argument of type fp8.*expected pointers.*build"):
        LoadedKernel(dataclasses.replace(RECORD, arguments=(("x", "fp8"),)), CUBIN)
    with pytest.raises(BundleError, match=r"64 bytes of global_scratch.*expected a kernel without"):
        LoadedKernel(dataclasses.replace(RECORD, scratch_bytes={"global_scratch": 64}), CUBIN)
    with pytest.raises(BundleError, match="found kernels for sm_80; expected kernels for sm_90, this GPU's; build"):
        _launch(architecture="sm_80")
    assert driver.launches == []


def test_a_library_without_the_architecture_names_those_that_it_holds(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found no kernels; expected kernels for sm_90"):
        KernelLibrary.load(tmp_path, "sm_90")
    for architecture in ("sm_86", "sm_80"):
        record = dataclasses.replace(RECORD, architecture=architecture)
        library = KernelLibrary(architecture, {"a": CompiledKernel(CUBIN, record)})
        library.save(tmp_path)
        assert KernelLibrary.load(tmp_path, architecture) == library
    with pytest.raises(BundleError, match="found kernels for sm_80, sm_86; expected kernels for sm_90; build"):
        KernelLibrary.load(tmp_path, "sm_90")


@pytest.mark.parametrize(
    ("function", "result", "kind", "words"),
    [
        ("Init", CUresult.CUDA_ERROR_NO_DEVICE, MissingDependencyError, "NO_DEVICE.*an NVIDIA GPU.*nvidia-smi"),
        ("LibraryLoadData", CUresult.CUDA_ERROR_INVALID_IMAGE, BundleError, "a_kernel: found CUDA_ERROR_INVALID_IMAGE"),
        ("CtxGetDevice", CUresult.CUDA_ERROR_INVALID_CONTEXT, ResourceError, "INVALID_CONTEXT from cuCtxGetDevice"),
        ("LaunchKernelEx", CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, ResourceError, "a_kernel: .*cuLaunchKernelEx"),
    ],
)
def test_failures_of_the_driver_are_named(
    driver: RecordingDriver, function: str, result: CUresult, kind: type[NemotronError], words: str
) -> None:
    driver.fails[function] = result
    with pytest.raises(kind, match=words):
        _launch()


def test_without_cuda_python_the_extra_is_named(driver: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingDependencyError, match=r"no cuda.bindings.*nemotron-export\[tensorrt\]"):
        _launch()


def test_copies_name_target_source_size_and_stream(driver: RecordingDriver) -> None:
    copy_on_device(77, 0x2000, 0x1000, 64)
    assert driver.copies == [(0x2000, 0x1000, 64, 77)]


def test_the_real_bindings_take_the_attributes() -> None:
    api = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings, of the extra tensorrt")
    record = dataclasses.replace(RECORD, pdl=True, cluster=(2, 1, 1))
    config = plugin_driver._config(api, record, 0x1234, (4, 5))
    layout = "<7I4xQQI"
    *sizes, stream, attributes, count = struct.unpack(
        layout, ctypes.string_at(config.getPtr(), struct.calcsize(layout))
    )
    assert (sizes, stream, count) == ([8, 5, 1, 128, 1, 1, 1000], 0x1234, 2)
    # two CUlaunchAttribute: an id and, eight bytes behind it, a value of 64 bytes
    found = [struct.unpack("<i4x3i", ctypes.string_at(attributes + 72 * i, 20)) for i in range(2)]
    identifiers = api.CUlaunchAttributeID
    assert found[0][:2] == (int(identifiers.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION), 1)
    assert found[1] == (int(identifiers.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION), 2, 1, 1)
