"""Every op of the dialect: eager, fake, schema and portable ONNX body agree on random shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nemotron_graphs.ops import DOMAIN, OPS, register_schemas
from torch._subclasses.fake_tensor import FakeTensorMode

OPSET = 21


@st.composite
def attention_shapes(draw: st.DrawFn) -> dict[str, int]:
    groups = draw(st.integers(1, 3))
    shapes = {
        "B": draw(st.integers(1, 3)),
        "S": draw(st.integers(1, 5)),
        "G": groups,
        "H": groups * draw(st.integers(1, 3)),
        "D": 2 * draw(st.integers(2, 9)),
        "extra_rows": draw(st.integers(0, 2)),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }
    shapes["T"] = shapes["S"] + draw(st.integers(0, 9))
    shapes["h"] = draw(st.integers(1, shapes["D"] // 2))
    return shapes


def make_inputs(op: str, s: dict[str, int], with_optional: bool) -> list[torch.Tensor]:
    """Random inputs for an op; optional ones trail where asked for."""
    rng = torch.Generator().manual_seed(s["seed"])

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    B, S, G, H, D, T, h = (s[k] for k in "BSGHDTh")
    N = B + s["extra_rows"] if with_optional else B
    start = torch.randint(0, T - S + 1, (B,), generator=rng)
    rows = [torch.randperm(N, generator=rng)[:B]] if with_optional else []
    if op == "PartialRotaryEmbedding":
        return [normal(B, S, H, D), normal(T, h), normal(T, h), torch.randint(0, T, (B, S), generator=rng)]
    if op == "KVCacheUpdate":
        return [normal(N, G, T, D), normal(B, S, G, D), start, *rows]
    if op == "CachedAttention":
        return [normal(B, S, H, D), normal(N, G, T, D), normal(N, G, T, D), start, *rows]
    assert op == "Linear"
    bias = [normal(D)] if with_optional else []
    return [normal(B, S, H * D), normal(D, H * D), *bias]


def run_body(op: str, inputs: list[torch.Tensor]) -> np.ndarray:
    """Runs the op's ONNX function in ONNX Runtime."""
    definition = OPS[op]
    names = [i.name for i in definition.inputs][: len(inputs)]
    present = {i.name for i in definition.inputs[: len(inputs)] if i.optional}
    function = onnx.parser.parse_function(definition.function_text(OPSET, present))
    described = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(t.numpy().dtype), list(t.shape))
        for n, t in zip(names, inputs, strict=True)
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, ["out"], domain=DOMAIN)],
        op,
        described,
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
        functions=[function],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})[0]


def has_optional(op: str) -> bool:
    return any(i.optional for i in OPS[op].inputs)


CASES = [(op, False) for op in OPS] + [(op, True) for op in OPS if has_optional(op)]


@pytest.mark.parametrize(("op", "with_optional"), CASES)
@settings(max_examples=25, deadline=None)
@given(shapes=attention_shapes())
def test_definitions_agree(op: str, with_optional: bool, shapes: dict[str, int]) -> None:
    inputs = make_inputs(op, shapes, with_optional)
    expected = OPS[op].eager(*inputs)
    torch.testing.assert_close(OPS[op](*inputs), expected, rtol=0, atol=0)
    np.testing.assert_allclose(run_body(op, inputs), expected.numpy(), rtol=2e-6, atol=2e-5)
    mode = FakeTensorMode()
    with mode:
        fake = OPS[op](*[mode.from_tensor(t) for t in inputs])
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("op", OPS)
def test_schema_matches_definition(op: str) -> None:
    register_schemas()
    schema = onnx.defs.get_schema(op, 1, DOMAIN)
    assert [i.name for i in schema.inputs] == [i.name for i in OPS[op].inputs]
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    assert [i.option == optional for i in schema.inputs] == [i.optional for i in OPS[op].inputs]
    assert schema.outputs[0].name == OPS[op].output[0]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype(op: str, dtype: torch.dtype) -> None:
    shapes = {"B": 2, "S": 3, "G": 2, "H": 4, "D": 8, "T": 9, "h": 2, "extra_rows": 1, "seed": 0}
    inputs = make_inputs(op, shapes, has_optional(op))
    low = [t.to(dtype) if t.is_floating_point() else t for t in inputs]
    out = OPS[op](*low)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), OPS[op](*inputs), rtol=0.05, atol=0.1)


def test_rotation_turns_first_lanes_in_half_split_pairs() -> None:
    x = torch.arange(6.0).reshape(1, 1, 1, 6)
    quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    out = OPS["PartialRotaryEmbedding"](x, *quarter, torch.zeros(1, 1, dtype=torch.long))
    assert out.flatten().tolist() == [-2.0, -3.0, 0.0, 1.0, 4.0, 5.0]


def test_update_refuses_slots_that_do_not_exist() -> None:
    cache, new = torch.zeros(1, 1, 4, 2), torch.ones(1, 2, 1, 2)
    for start in (3, -1):
        with pytest.raises(IndexError, match="4 slots"):
            OPS["KVCacheUpdate"](cache, new, torch.tensor([start]))


def test_attention_ignores_what_lies_behind_a_row() -> None:
    q, k, v = torch.randn(2, 1, 2, 4), torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 4)
    start = torch.tensor([2, 4])
    before = OPS["CachedAttention"](q, k, v, start)
    for row, end in enumerate((3, 5)):
        k[row, :, end:], v[row, :, end:] = 1e4, -1e4
    torch.testing.assert_close(OPS["CachedAttention"](q, k, v, start), before, rtol=0, atol=0)
