"""Passes: the graph before and after, and what each refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from nemotron_errors import GraphError
from nemotron_formats.tensors import TensorEntry
from nemotron_graphs import passes
from nemotron_graphs.targets import TARGETS, get_target

OPSET = {"": 21, "nemotron": 1}


def entry(name: str, dtype: str, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(name, dtype, shape, "model.safetensors", 128, 64)


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21, "nemotron": 1, "com.microsoft": 1]>\n{text}')


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def test_canonicalize_shapes_reads_dims_from_inputs() -> None:
    model = parse("""g (float[batch,tokens,4] x) => (int64[1] tokens_out, int64[1] width) {
        r = Relu(x)
        tokens_out = Shape<start=1, end=2>(r)
        width = Shape<start=2, end=3>(r)
    }""")
    model.graph[0].outputs[0].shape = ir.Shape(["batch", "tokens", 4])
    assert passes.CanonicalizeShapesPass()(model).modified
    passes.cleanup()(model)
    assert "Relu" not in ops(model)
    out = run(model, x=np.zeros((2, 7, 4), np.float32))
    assert [o.tolist() for o in out] == [[7], [4]]


@pytest.mark.parametrize(
    "body",
    [
        "y = nemotron.KVCacheUpdate(k_cache.0, new, at)\n z = Neg(k_cache.0)",
        "y = Neg(k_cache.0)\n z = Identity(y)",
    ],
)
def test_check_cache_readers_refuses_a_second_reader(body: str) -> None:
    text = f"""g (float[1,2,8,4] k_cache.0, float[1,1,2,4] new, int64[1] at)
        => (float[1,2,8,4] y, float[1,2,8,4] z) {{ {body} }}""".replace("k_cache.0", "k_cache_0")
    model = parse(text)
    model.graph.inputs[0].name = "k_cache.0"
    with pytest.raises(ir.passes.InvariantError, match="expected its update alone"):
        passes.CheckCacheReadersPass()(model)


def test_fused_matmul_keeps_the_weight_layout() -> None:
    model = parse("""g (float[batch,tokens,3] x, float[2,3] w, float[2] b) => (float[batch,tokens,2] y) {
        y = nemotron.Linear(x, w, b)
    }""")
    assert passes.LowerLinearToFusedMatMulPass()(model).modified
    assert ops(model) == ["FusedMatMul", "Add"]
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 3), (2, 3), (2,)))
    np.testing.assert_allclose(run(model, x=x, w=w, b=b)[0], x @ w.T + b, rtol=1e-5, atol=1e-6)


def test_weights_are_bound_where_they_lie_and_cast_behind_a_gather() -> None:
    model = parse("""g (int64[n] ids, float[8,4] table, float[4,4] w) => (float[n,4] y) {
        x = Gather(table, ids)
        y = MatMul(x, w)
    }""")
    passes.InferShapesPass()(model)
    passes.BindWeightsPass({"table": entry("table", "BF16", (8, 4)), "w": entry("w", "BF16", (4, 4))})(model)
    # the embedding is converted row by row, never whole; the matrix is converted once
    assert ops(model) == ["Cast", "Gather", "Cast", "MatMul"]
    assert [v.name for v in model.graph.inputs] == ["ids"]
    bound = model.graph.initializers["table"].const_value
    assert isinstance(bound, ir.ExternalTensor)
    assert (bound.location, bound.offset, bound.length, bound.dtype) == (
        "model.safetensors",
        128,
        64,
        ir.DataType.BFLOAT16,
    )


def test_a_weight_of_another_shape_is_refused() -> None:
    model = parse("g (float[4,4] w) => (float[4,4] y) { y = Neg(w) }")
    with pytest.raises(ir.passes.PreconditionError, match=r"found shape \[4, 5\]"):
        passes.BindWeightsPass({"w": entry("w", "F32", (4, 5))})(model)


def test_rope_tables_become_initializers() -> None:
    model = parse("""g (int64[b,s] p, float[table,2] cos, float[table,2] sin) => (float[b,s,2] y) {
        c = Gather(cos, p)
        s_ = Gather(sin, p)
        y = Sub(c, s_)
    }""")
    tables = np.arange(8, dtype=np.float32).reshape(4, 2), np.ones((4, 2), np.float32)
    passes.BindRopeTablesPass(*tables)(model)
    assert run(model, p=np.array([[3, 0]]))[0].tolist() == [[[5.0, 6.0], [-1.0, 0.0]]]


def test_unused_inputs_are_dropped() -> None:
    model = parse("g (float[2] a, float[2] b) => (float[2] y) { y = Neg(a) }")
    assert passes.DropUnusedInputsPass()(model).modified
    assert [v.name for v in model.graph.inputs] == ["a"]


def test_unknown_target_and_dtype_are_refused() -> None:
    with pytest.raises(GraphError, match="one of onnx, ort-cpu"):
        get_target("tensorflow")
    with pytest.raises(GraphError, match="float32 for target ort-cpu"):
        TARGETS["ort-cpu"].check_dtype("bfloat16")
