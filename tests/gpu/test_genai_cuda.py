"""ONNX Runtime GenAI opens a ``genai-cuda`` folder on a GPU and writes what our runtime writes from ``ort-cuda``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nemotron_runtime.executors.onnxruntime.cuda import CUDA_PROVIDER, start_cuda

from nemotron_export.building import build
from nemotron_export.checkpoint.convert import convert

onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime")
genai = pytest.importorskip("onnxruntime_genai", reason="no onnxruntime_genai: pip install onnxruntime-genai-cuda")
pytestmark = [
    pytest.mark.skipif(
        CUDA_PROVIDER not in onnxruntime.get_available_providers(),
        reason="this onnxruntime has no CUDAExecutionProvider",
    ),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU to judge on"),
    pytest.mark.skipif(
        not genai.is_cuda_available(), reason="this onnxruntime_genai is not the CUDA package, onnxruntime-genai-cuda"
    ),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_genai_and_our_runtime_write_the_same_behind_every_prompt(dtype: str, tmp_path: Path) -> None:
    # it imports onnxruntime_genai
    from support.genai_agreement import DEMO, check_agreement, write_both

    checkpoint = DEMO
    if dtype != "bfloat16":
        # what both graphs read is what both compute in
        checkpoint = convert(DEMO, tmp_path / "checkpoint", dtype)
    # CUDA's libraries out of their packages, which GenAI does not look for
    start_cuda(onnxruntime)
    genai_folder, ours = (
        build(checkpoint, tmp_path / target, target=target, dtype=dtype, max_seq_len=1024, parity=False, weights="copy")
        for target in ("genai-cuda", "ort-cuda")
    )
    written = write_both(genai_folder, ours)
    assert max(len(each.prompt) for each in written) > 500
    check_agreement(written, checkpoint, getattr(torch, dtype), "cuda")
