"""`bench` beside a GPU: its memory, its bandwidth, and what tables and the document say of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nemotron_errors import MissingDependencyError, RequestError, ResourceError
from nemotron_runtime.cuda import load_driver
from support.cuda_driver import FakeCuda

from nemotron_export.bench import BackendResult, BenchOptions, BenchResult, Measurement, Spread
from nemotron_export.bench.backends.base import BackendSpec, BenchRequest, Description
from nemotron_export.bench.backends.eager import EagerBackend
from nemotron_export.bench.gpu import Gpu
from nemotron_export.bench.options import Shape, Times
from nemotron_export.cli.bench import print_bench

ROOT = Path(__file__).parents[2]
SHAPE = Shape(8, 4, 1)
GPU = {"name": "A GPU of numpy", "architecture": "sm_90", "cuda_driver": "12.8", "memory_bytes": 80 << 30}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    load_driver.cache_clear()
    fake = FakeCuda(total=10_000)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)  # type: ignore[arg-type]
    yield fake
    load_driver.cache_clear()
    assert fake.leaks() == (0, 0, 0, 0)


def spec(device: str, size: int) -> BackendSpec:
    return BackendSpec("fake", device, {}, size, device)


def test_the_gpu_is_described_and_measured_once_per_round(cuda: Any) -> None:
    with Gpu([spec("cuda", 5000), spec("cpu", 1 << 40)], buffer_bytes=1024) as gpu:
        assert gpu.describe() == {**GPU, "memory_bytes": 10_000}
        for _ in range(3):
            gpu()
        # eight copies of 1024 bytes, read and written, in the fake's 2 ms
        assert gpu.measured(2) == [pytest.approx(8_192_000)] * 2


def test_a_gpu_is_warmed_up_for_longer() -> None:
    assert [BenchOptions().warmup_of(each) for each in (False, True)] == [1, 3]
    assert [BenchOptions(warmup=0).warmup_of(each) for each in (False, True)] == [0, 0]


def test_weights_that_do_not_fit_on_the_gpu_are_refused(cuda: Any) -> None:
    with pytest.raises(ResourceError, match="for the weights of 2 backends") as caught:
        Gpu([spec("cuda", 5000), spec("cuda", 4000), spec("cpu", 1)], buffer_bytes=1024)
    assert caught.value.where == "A GPU of numpy"


def result(gpu: bool) -> BenchResult:
    bandwidth, on_gpu = Spread.of([2e10, 3e10]), Spread.of([2e12, 3e12])
    described = Description("bfloat16", 10, 10**9, 8)
    backends = []
    for name, device, peak in (("a bundle", "cuda", 3 << 30), ("eager", "cpu", None)):
        memory = on_gpu if device == "cuda" else bandwidth
        found = Measurement.of(SHAPE, [Times(0.5, 0.6, 0.004)], described, memory.median)
        backends.append(
            BackendResult(name, "bundle", "bfloat16", 10**9, 8, 1.0, 1 << 30, (found,), device if gpu else "cpu",
                            peak if gpu else None)
        )  # fmt: skip
    machine = {
        "python": "3", "system": "s", "cpu": "c", "cores": 1, "threads": 1, "memory_bytes": 1,
        "last_level_cache_bytes": 2 << 30, "load_average": 0.0,
    }  # fmt: skip
    return BenchResult(
        8, 4, 1, (8,), 1, 0, bandwidth, 1 << 20, machine, {}, tuple(backends), *((GPU, on_gpu) if gpu else ())
    )


def test_the_share_is_of_the_memory_that_the_backend_reads() -> None:
    on_gpu, on_cpu = result(True).backends
    # 1 GB and 52 bytes per step, 1 ms each
    assert on_gpu.measurements[0].bandwidth_share == pytest.approx(1e12 / 2.5e12, rel=1e-6)
    assert on_cpu.measurements[0].bandwidth_share == pytest.approx(1e12 / 2.5e10, rel=1e-6)


def test_the_document_names_the_gpu_where_there_was_one() -> None:
    with_gpu, without = result(True).to_dict(), result(False).to_dict()
    assert with_gpu["gpu"] == GPU
    assert [c["device_peak_bytes"] for c in with_gpu["contenders"]] == [3 << 30, None]
    assert [c["device"] for c in with_gpu["contenders"]] == ["cuda", "cpu"]
    new = set(with_gpu) - set(without)
    assert new == {"gpu", "gpu_method", "gpu_bytes_per_second"}
    in_backend = set(with_gpu["contenders"][0]) - set(without["contenders"][0])
    assert in_backend == {"device", "device_peak_bytes"}
    text = (ROOT / "ci" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for name in (*new, *in_backend, *GPU):
        assert f"`{name}`" in text, name


def test_tables_have_a_column_for_gpu_memory(capsys: pytest.CaptureFixture[str]) -> None:
    print_bench(result(True))
    text = capsys.readouterr().out
    assert "GPU memory" in text
    assert "3.2 GB" in text
    assert "2500 GB/s (2000 - 3000; device-to-device copies" in " ".join(text.split())
    assert "last-level cache" in text, "of the backend on the CPU"
    cpu = replace(result(False), machine={**result(False).machine, "last_level_cache_bytes": None})
    print_bench(cpu)
    assert "GPU" not in capsys.readouterr().out


def test_eager_pytorch_needs_a_gpu_that_it_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = {"checkpoint": "", "dtype": "bfloat16", "cache": "static", "device": "cuda"}
    with pytest.raises(MissingDependencyError, match="sees no GPU"):
        EagerBackend(options, torch.get_num_threads()).prepare()


def test_an_unknown_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = BenchRequest((), tmp_path, None, False, BenchOptions(eager_device="tpu"))
    monkeypatch.setattr("nemotron_export.bench.backends.eager.Checkpoint.open", lambda folder: None)
    with pytest.raises(RequestError, match="--eager-device"):
        EagerBackend.specs(request)
