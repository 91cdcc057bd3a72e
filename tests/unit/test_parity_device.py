"""Where the reference is computed, with PyTorch's view of the GPU faked."""

from __future__ import annotations

import logging

import pytest
import torch
from nemotron_errors import MissingDependencyError, RequestError, ResourceError
from nemotron_graphs.targets import TARGETS

from nemotron_export.parity.device import choose_device, default_device, device_name, true_fp32

BILLION = 10**9


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * BILLION, 80 * BILLION))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU named {device}")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_used_where_it_holds_the_model(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_device("auto", 4 * BILLION) == choose_device("cuda", 4 * BILLION) == "cuda"
    assert choose_device("cpu", 4 * BILLION) == "cpu"
    assert not caplog.records
    assert choose_device("auto", 5 * BILLION) == "cpu"
    assert "20.0 GB free of 80.0 GB of GPU memory, about 22.0 GB" in caplog.text
    with pytest.raises(ResourceError, match=r"expected about 22\.0 GB"):
        choose_device("cuda", 5 * BILLION)
    assert device_name("cuda") == "a GPU named cuda"
    assert device_name("cpu") == "the CPU"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert choose_device("auto", 1) == "cpu"
    assert "the reference is made on the CPU" in caplog.text
    with pytest.raises(MissingDependencyError, match="sees no GPU"):
        choose_device("cuda", 1)
    with pytest.raises(RequestError, match="one of auto, cpu, cuda"):
        choose_device("tpu", 1)


def test_a_bundle_for_a_gpu_is_compared_on_the_same_gpu() -> None:
    on_a_gpu = {name for name, target in TARGETS.items() if default_device(target) == "auto"}
    assert on_a_gpu == {"ort-cuda", "genai-cuda", "tensorrt", "tensorrt-rtx"}
    assert {default_device(TARGETS[name]) for name in set(TARGETS) - on_a_gpu} == {"cpu"}


def test_fp32_is_never_tf32_and_the_setting_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with true_fp32("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(RequestError), true_fp32("cpu"):
            choose_device("tpu", 1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
