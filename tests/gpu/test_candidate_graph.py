"""The graph of candidates on a GPU, at vocabularies whose rows are searched whole and in parts.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from nemotron_graphs.targets.candidate_graph import candidate_graph
from nemotron_runtime.executors.onnxruntime.cuda import CUDA_PROVIDER, start_cuda
from nemotron_runtime.executors.onnxruntime.placement import RECORD_PLACEMENT, cpu_nodes
from nemotron_runtime.executors.onnxruntime.sampler import OnnxRuntimeSampler

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    CUDA_PROVIDER not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no CUDAExecutionProvider",
)

COUNT, DEVICE = 128, ("cuda", 0)
TYPES = {np.float32: ir.DataType.FLOAT, np.float16: ir.DataType.FLOAT16}
LIKE = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 21]>\ng (float[b] x) => (float[b] y) { y = Identity(x) }')


def opened(folder: Path, vocab_size: int, dtype: Any) -> Any:
    start_cuda(onnxruntime)
    ir.save(candidate_graph(vocab_size, COUNT, TYPES[dtype], LIKE), folder / "candidates.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD_PLACEMENT, "1")
    chosen = (CUDA_PROVIDER, {"device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0"})
    path = str(folder / "candidates.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=[chosen], enable_fallback=0)
    assert session.get_providers()[0] == CUDA_PROVIDER
    return session


def check(sampler: OnnxRuntimeSampler, logits_BV: npt.NDArray[Any], temperature: float) -> None:
    found = sampler.candidates(temperature)
    wide_BV = logits_BV.astype(np.float32)
    np.testing.assert_array_equal(found.logits, -np.sort(-wide_BV, axis=-1)[:, :COUNT])
    np.testing.assert_array_equal(np.take_along_axis(wide_BV, found.ids, -1), found.logits)
    assert all(len(set(row.tolist())) == COUNT for row in found.ids)
    expected_B = np.logaddexp.reduce(wide_BV.astype(np.float64) / temperature, axis=-1)
    # a nucleus that ends closer than 1e-4 of all mass to a token's edge is left to the host
    np.testing.assert_allclose(found.log_sum, expected_B, rtol=1e-7, atol=5e-5)


# two of them whole, 50,280 in 8 parts, the others in 32
@pytest.mark.parametrize("vocab_size", [320, 1003, 16384, 50280, 256000])
@pytest.mark.parametrize("dtype", TYPES, ids=["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 8])
def test_it_finds_what_numpy_finds_in_a_cuda_graph(tmp_path: Path, vocab_size: int, dtype: Any, rows: int) -> None:
    session = opened(tmp_path, vocab_size, dtype)
    assert cpu_nodes(session) == []
    rng = np.random.default_rng(vocab_size)
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "1")
    zeros_BV = np.zeros((rows, vocab_size), dtype)
    sampler = OnnxRuntimeSampler(
        onnxruntime, DEVICE, zeros_BV, options, chooses=False, session=session, candidate_count=COUNT
    )
    for temperature, whole in ((0.7, False), (0.7, False), (0.05, False), (2.0, False), (1.0, True)):
        # the buffers stay: what was captured reads new numbers in them
        logits_BV = rng.normal(size=(rows, vocab_size)) * 6
        logits_BV = (logits_BV.round() if whole else logits_BV).astype(dtype)
        sampler.logits_B1V.update_inplace(np.ascontiguousarray(logits_BV[:, None]))
        check(sampler, logits_BV, temperature)
