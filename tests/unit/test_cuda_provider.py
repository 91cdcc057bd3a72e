"""A build for CUDA with a parity check is refused where ONNX Runtime cannot run it, before anything is made."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from nemotron_errors import MissingDependencyError, RequestError
from nemotron_graphs.targets import get_target
from support.raw_checkpoints import TINY, write_sparse

from nemotron_export import check_parity
from nemotron_export.building import build
from nemotron_export.parity import provider
from nemotron_export.parity.provider import check_runs_here

CUDA = "CUDAExecutionProvider"


class Driver:
    """libcuda with so many GPUs; `code` is what its initialization gives."""

    def __init__(self, count: int, code: int = 0) -> None:
        self._count, self._code = count, code

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._code

    def cuDeviceGetCount(self, pointer: Any) -> int:  # noqa: N802
        pointer._obj.value = self._count
        return 0


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])


def test_an_onnxruntime_without_cuda_is_refused_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=rf"found providers CPUExecution.*{CUDA}.*ort-gpu.*--no-parity"):
        check_runs_here(get_target("ort-cuda"), "here", building=True)
    for name in ("ort-cpu", "onnx", "genai-cpu", "tensorrt"):
        check_runs_here(get_target(name), "here", building=True)


@pytest.mark.usefixtures("with_cuda")
def test_no_gpu_is_refused_and_one_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target("ort-cuda")
    loaded: list[Any] = []
    for driver in (Driver(0), Driver(1, code=100)):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, driver=driver: loaded.append(name) or driver)
        with pytest.raises(MissingDependencyError, match=r"no NVIDIA GPU.*driver.*--no-parity"):
            check_runs_here(target, "here", building=True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: loaded.append(name) or Driver(1))
    started: list[Any] = []
    monkeypatch.setattr(provider, "start_cuda", started.append)
    check_runs_here(target, "here", building=True)
    assert started == [onnxruntime]
    assert loaded == [provider._DRIVER] * 3

    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(MissingDependencyError, match="no NVIDIA GPU"):
        check_runs_here(target, "here", building=True)


def test_a_build_is_refused_before_the_checkpoint_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=CUDA):
        build(tmp_path / "no checkpoint", tmp_path / "bundle", target="ort-cuda")
    assert list(tmp_path.iterdir()) == []
    write_sparse(tmp_path / "checkpoint", {**TINY, "head_dim": 32}, shard_bytes=1 << 30)
    made = build(tmp_path / "checkpoint", tmp_path / "bundle", target="ort-cuda", parity=False, scan=False)
    assert (made / "model.onnx").is_file()


def test_a_parity_check_is_refused_before_its_reference_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sparse(tmp_path / "checkpoint", {**TINY, "head_dim": 32}, shard_bytes=1 << 30)
    options: Any = {"parity": False, "scan": False, "max_seq_len": 64}
    bundles = {
        name: build(tmp_path / "checkpoint", tmp_path / name, target=name, **options)
        for name in ("ort-cuda", "genai-cuda", "ort-cpu")
    }

    def made(*args: Any, **options: Any) -> Any:
        raise AssertionError("a reference")

    monkeypatch.setattr("nemotron_export.parity.check.reference_for", made)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=rf"found providers CPUExecution.*{CUDA}.*ort-gpu") as caught:
        check_parity(bundles["ort-cuda"])
    assert "--no-parity" not in str(caught.value)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0))
    with pytest.raises(MissingDependencyError, match="no NVIDIA GPU") as caught:
        check_parity(bundles["ort-cuda"])
    assert caught.value.where == str(bundles["ort-cuda"])
    with pytest.raises(RequestError, match="a parity check of target genai-cuda") as refused:
        check_parity(bundles["genai-cuda"])
    assert refused.value.where == str(bundles["genai-cuda"])
    # what can be run goes on to its reference
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(1))
    monkeypatch.setattr(provider, "start_cuda", lambda ort: None)
    for name in ("ort-cuda", "ort-cpu"):
        with pytest.raises(AssertionError, match="a reference"):
            check_parity(bundles[name])
