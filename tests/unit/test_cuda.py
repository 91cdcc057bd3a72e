"""The layer over CUDA's driver: errors in three parts, everything given back, graphs that replay."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nemotron_errors import MissingDependencyError, ResourceError
from nemotron_plugins.driver.cuda import _LOST, _NO_DRIVER
from nemotron_runtime.cuda import CopyBandwidth, Device, load_driver
from support.cuda_driver import CUresult, FakeCuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    load_driver.cache_clear()
    fake = FakeCuda(total=1 << 20)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)  # type: ignore[arg-type]
    yield fake
    load_driver.cache_clear()


def test_a_device_says_what_it_is(cuda: Any) -> None:
    with Device() as device:
        assert (device.name, device.architecture, device.multiprocessors) == ("A GPU of numpy", "sm_90", 132)
        assert device.driver_version == "12.8"
        assert device.memory() == (1 << 20, 1 << 20)
    device.close()
    assert cuda.contexts == 0, "closing twice releases once"


def test_closing_makes_the_context_of_before_current_again(cuda: Any) -> None:
    for before in (0, 5):
        cuda.current = before
        with Device():
            assert cuda.current not in (0, 5)
        assert cuda.current == before
        device = Device()
        cuda.current = 9
        device.close()
        assert cuda.current == 9, "what somebody else made current stays"


def test_copies_there_and_back_keep_every_byte_in_order(cuda: Any) -> None:
    with (
        Device() as device, device.allocate(64, "a test") as buffer, device.pinned(64) as there,
        device.pinned(32) as back,
    ):  # fmt: skip
        stream = device.stream()
        there.array(np.uint8, (64,))[:] = np.arange(64)
        buffer.zero(stream)
        buffer.upload(there.address + 8, 16, stream, offset=4)
        buffer.download(back.address, 32, stream, offset=2)
        assert back.array(np.uint8, (32,))[0] == 0xCD, "nothing happens before somebody waits"
        stream.synchronize()
        assert back.array(np.uint8, (4, 8)).ravel().tolist() == [0, 0, *range(8, 24), *[0] * 14]
        stream.close()
        stream.close()
    assert cuda.leaks() == (0, 0, 0, 0)


def test_a_graph_replays_with_what_its_memory_holds_now(cuda: Any) -> None:
    with Device() as device, device.allocate(8, "a") as buffer, device.pinned(16) as pinned:
        stream = device.stream()
        number, result = pinned.array(np.int64, (2,))[:1], pinned.array(np.int64, (2,))[1:]

        def work() -> None:
            buffer.upload(pinned.address, 8, stream)
            buffer.download(pinned.address + 8, 8, stream)

        graph = stream.capture(work)
        stream.synchronize()
        assert result[0] != 7
        for value in (7, 8):
            number[0] = value
            graph.launch(stream)
            stream.synchronize()
            assert result[0] == value
        graph.close()
        graph.close()
        stream.close()
    assert cuda.leaks() == (0, 0, 0, 0)


def test_an_error_while_recording_leaves_a_stream_that_works(cuda: Any) -> None:
    with Device() as device:
        stream = device.stream()

        def work() -> None:
            device.allocate(8, "what cannot be recorded")

        with pytest.raises(ResourceError, match="CAPTURE_UNSUPPORTED"):
            stream.capture(work)
        stream.synchronize()
        stream.close()
    assert cuda.leaks() == (0, 0, 0, 0)


def test_an_event_marks_what_came_before_it(cuda: Any) -> None:
    with Device() as device, device.allocate(8, "a") as buffer, device.pinned(8) as pinned:
        stream, event = device.stream(), device.event()
        event.wait()
        buffer.zero(stream)
        buffer.download(pinned.address, 8, stream)
        event.record(stream)
        event.wait()
        assert pinned.array(np.int64, (1,))[0] == 0
        event.close()
        event.close()
        stream.close()
    assert cuda.leaks() == (0, 0, 0, 0)


def test_out_of_memory_has_the_numbers(cuda: Any) -> None:
    with Device() as device, device.allocate(600_000, "the weights"):
        with pytest.raises(ResourceError) as caught:
            device.allocate(500_000_000, "the KV cache")
        assert "0.00 GB free of 0.00 GB" in caught.value.found
        assert "0.50 GB for the KV cache" in caught.value.expected
        assert caught.value.where == "A GPU of numpy"
        assert device.allocated == device.peak == 600_000
        cuda.pinned_limit = 10
        with pytest.raises(ResourceError, match=r"no pinned memory left; expected 1\.0 MB"):
            device.pinned(1_000_000)
    assert device.allocated == 0
    assert device.peak == 600_000


def test_a_failed_call_names_itself(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Device() as device:
        stream = device.stream()
        monkeypatch.setattr(cuda, "cuStreamSynchronize", lambda stream: (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,))
        with pytest.raises(ResourceError, match="CUDA_ERROR_ILLEGAL_ADDRESS from cuStreamSynchronize") as caught:
            stream.synchronize()
        assert "start the process again" in caught.value.remedy
        monkeypatch.undo()


def test_what_is_missing_is_named(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="1 GPUs; expected a GPU number 1"):
        Device(1)
    cuda.devices = 0
    load_driver.cache_clear()
    with pytest.raises(MissingDependencyError, match="CUDA_ERROR_NO_DEVICE"):
        load_driver()

    def no_library(flags: int) -> None:
        raise RuntimeError("no libcuda")

    monkeypatch.setattr(cuda, "cuInit", no_library)
    with pytest.raises(MissingDependencyError, match=r"no libcuda.*nvidia-smi"):
        load_driver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match=r'pip install "nemotron-export\[tensorrt\]"') as caught:
        load_driver()
    assert caught.value.exit_code == 3


def test_copies_count_reads_and_writes(cuda: Any) -> None:
    with Device() as device:
        probe = CopyBandwidth(device, 4096)
        # the fake's events are 2 ms apart
        assert probe() == pytest.approx(2 * 8 * 4096 / 0.002)
        assert probe.buffer_bytes == 4096
        probe.close()
    assert cuda.leaks() == (0, 0, 0, 0)


def test_the_fake_has_the_functions_and_parameters_of_the_real_one() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    for name in dir(FakeCuda):
        if name.startswith("cu") and name not in ("current",):
            signature = getattr(real, name).__doc__.splitlines()[0]
            parameters = [p for p in signature.partition("(")[2].rpartition(")")[0].split(",") if p.strip()]
            found = inspect.signature(getattr(FakeCuda, name)).parameters
            assert len(parameters) == len(found) - 1, signature
    for name in (*(result.name for result in CUresult), *_LOST, *_NO_DRIVER):
        assert hasattr(real.CUresult, name), name
    for kind in (FakeCuda.CUstreamCaptureMode, FakeCuda.CUdevice_attribute):
        for name, value in vars(kind).items():
            owner = real.CUstreamCaptureMode if "CAPTURE" in name else real.CUdevice_attribute
            assert int(getattr(owner, name)) == value
    # handles as TensorRT and this layer take them
    assert int(real.CUstream(7)) == int(real.CUdeviceptr(7)) == 7


def test_the_layer_asks_for_nothing_before_it_is_used() -> None:
    driver = SimpleNamespace(cuInit=lambda flags: (CUresult.CUDA_SUCCESS,), CUresult=CUresult)
    load_driver.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings.driver", driver)  # type: ignore[arg-type]
        assert load_driver() is load_driver()
    load_driver.cache_clear()
