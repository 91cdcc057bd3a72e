"""The graph of candidates by ONNX Runtime's CPU kernels gives what numpy gives.

Shapes: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_graphs.targets.candidate_graph import CANDIDATES_FILE, add_candidates, candidate_graph
from nemotron_graphs.targets.lowering import Lowered, LoweredGraph

# ops that ONNX Runtime's CUDA provider computes on the device, with constants alone on the host
CUDA_OPS = {"Cast", "Reshape", "TopK", "Add", "GatherElements", "Slice", "Div", "Sub", "Exp", "ReduceSum"}
DTYPES = {np.float32: ir.DataType.FLOAT, np.float16: ir.DataType.FLOAT16}
# vocabulary → parts that are searched side by side
SIZES = {1: 1, 96: 1, 128: 1, 500: 1, 1003: 1, 1024: 2, 3072: 4, 16384: 32, 65536: 32}


def parent(vocab_size: int = 500, opset: int = 21) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": {opset}]>\n'
        f"g (float[b,k,{vocab_size}] x) => (float[b,k,{vocab_size}] logits) {{ logits = Identity(x) }}"
    )


def run(model: ir.Model, logits_BV: npt.NDArray[Any], temperature: float) -> list[npt.NDArray[Any]]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"logits": logits_BV[:, None], "temperature": np.array([temperature], np.float32)})


def check(logits_BV: npt.NDArray[Any], temperature: float) -> None:
    vocab_size = logits_BV.shape[1]
    count = min(128, vocab_size)
    model = candidate_graph(vocab_size, count, DTYPES[logits_BV.dtype.type], parent())
    few_BC, ids_BC, mass_B = run(model, logits_BV, temperature)
    assert (few_BC.dtype, ids_BC.dtype, mass_B.dtype) == (np.float32, np.int64, np.float32)
    wide_BV = logits_BV.astype(np.float32)
    np.testing.assert_array_equal(few_BC, -np.sort(-wide_BV, axis=-1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(wide_BV, ids_BC, -1), few_BC)
    assert all(len(set(row.tolist())) == count for row in ids_BC)
    below_BV = wide_BV.astype(np.float64) - few_BC[:, :1]
    expected_B = np.exp(below_BV / np.float64(np.float32(temperature))).sum(-1)
    assert np.isfinite(mass_B).all()
    # a score's own last bit, near the largest one: what lies below hardly counts
    bound = 1e-5 + 2 * np.abs(few_BC).max() / temperature * np.finfo(np.float32).eps
    np.testing.assert_allclose(mass_B, expected_B, rtol=bound)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
@pytest.mark.parametrize(("rows", "temperature"), [(1, 0.05), (2, 0.7), (3, 1.0), (4, 2.0)])
def test_it_finds_what_numpy_finds(vocab_size: int, dtype: Any, rows: int, temperature: float) -> None:
    rng = np.random.default_rng(vocab_size)
    check((rng.normal(size=(rows, vocab_size)) * 6).astype(dtype), temperature)


@pytest.mark.parametrize("vocab_size", [96, 500, 3072])
def test_of_equal_logits_each_token_comes_once(vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    check(rng.integers(-3, 4, (3, vocab_size)).astype(np.float32), 0.5)
    check(np.zeros((2, vocab_size), np.float32), 1.0)


@pytest.mark.parametrize("shift", [-60000.0, 60000.0])
def test_no_logit_makes_the_sum_overflow(shift: float) -> None:
    logits_BV = (np.random.default_rng(0).normal(size=(2, 1024)) * 1000).clip(-5000, 5000).astype(np.float32)
    check(logits_BV + np.float32(shift), 0.05)
    check((logits_BV + np.float32(shift)).astype(np.float16), 0.05)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
def test_its_ops_have_cuda_kernels_and_long_rows_are_searched_in_parts(vocab_size: int, dtype: Any) -> None:
    model = candidate_graph(vocab_size, min(128, vocab_size), DTYPES[dtype], parent(opset=23))
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert model.opset_imports == {"": 23}
    assert {node.op_type for node in model.graph} <= CUDA_OPS
    assert any(node.op_type == "Cast" for node in model.graph) == (dtype == np.float16)
    searches = [node for node in model.graph if node.op_type == "TopK"]
    assert len(searches) == (1 if SIZES[vocab_size] == 1 else 2)
    assert searches[0].outputs[0].shape is not None
    assert searches[0].outputs[0].shape[1:-1] == (() if SIZES[vocab_size] == 1 else (SIZES[vocab_size],))


def test_it_is_saved_next_to_the_model_and_named_in_the_session(tmp_path: Path) -> None:
    def lowered(vocab_size: int = 500) -> Lowered:
        return Lowered({"model": LoweredGraph(parent(vocab_size), "model.onnx")}, {"graph": "model.onnx"})

    added = add_candidates(lowered(), 128)
    assert added.session == {"graph": "model.onnx", "candidates": {"graph": CANDIDATES_FILE, "count": 128}}
    added.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CANDIDATES_FILE, "model.onnx"]
    outputs = onnx.load(tmp_path / CANDIDATES_FILE).graph.output
    assert [value.name for value in outputs] == ["candidate_logits", "candidate_ids", "mass"]
    assert add_candidates(lowered(60), 128).session["candidates"]["count"] == 60
