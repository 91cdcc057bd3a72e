"""Every op of the dialect: eager, fake, schema and portable ONNX body agree on random shapes."""

from __future__ import annotations

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nemotron_errors import GraphError
from nemotron_graphs.ops import DOMAIN, OPS, register_schemas
from support.op_definitions import DTYPES, attributes_of_ops, check_definitions, run_body, shapes_of_ops


def has_optional(op: str) -> bool:
    return any(i.optional for i in OPS[op].inputs)


CASES = [(op, False) for op in OPS] + [(op, True) for op in OPS if has_optional(op)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "with_optional"), CASES)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), sizes=shapes_of_ops())
def test_definitions_agree(
    op: str, with_optional: bool, dtype: str, data: st.DataObject, sizes: dict[str, int]
) -> None:
    check_definitions(op, with_optional, dtype, sizes, data.draw(attributes_of_ops(op)))


@pytest.mark.parametrize("op", OPS)
def test_schema_matches_definition(op: str) -> None:
    register_schemas()
    schema = onnx.defs.get_schema(op, 1, DOMAIN)
    assert [i.name for i in schema.inputs] == [i.name for i in OPS[op].inputs]
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    assert [i.option == optional for i in schema.inputs] == [i.optional for i in OPS[op].inputs]
    assert [o.name for o in schema.outputs] == [name for name, _ in OPS[op].outputs]
    assert {name: a.required for name, a in schema.attributes.items()} == {
        a.name: a.required for a in OPS[op].attributes
    }


def test_rotation_turns_first_lanes_in_half_split_pairs() -> None:
    x = torch.arange(6.0).reshape(1, 1, 1, 6)
    quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    out = OPS["PartialRotaryEmbedding"](x, *quarter, torch.zeros(1, 1, dtype=torch.long))
    assert out.flatten().tolist() == [-2.0, -3.0, 0.0, 1.0, 4.0, 5.0]


def test_update_refuses_positions_that_do_not_exist() -> None:
    cache, new = torch.zeros(1, 1, 4, 2), torch.ones(1, 2, 1, 2)
    for start in (3, -1):
        with pytest.raises(IndexError, match="capacity 4"):
            OPS["KVCacheUpdate"](cache, new, torch.tensor([start]))


def test_attention_ignores_what_lies_after_a_sequence() -> None:
    q, k, v = torch.randn(2, 1, 2, 4), torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 4)
    start = torch.tensor([2, 4])
    before = OPS["CachedAttention"](q, k, v, start)
    for sequence, end in enumerate((3, 5)):
        k[sequence, :, end:], v[sequence, :, end:] = 1e4, -1e4
    torch.testing.assert_close(OPS["CachedAttention"](q, k, v, start), before, rtol=0, atol=0)


def test_attributes_that_make_no_sense_are_refused() -> None:
    op = OPS["LayerNormLinear"]
    assert op.attributes_of({"epsilon": 1e-3})["activation"] == "none"
    with pytest.raises(GraphError, match="attribute epsilon"):
        op.attributes_of({})
    with pytest.raises(GraphError, match="one of none, relu_squared"):
        op.attributes_of({"epsilon": 1e-3, "activation": "gelu"})


def test_a_residual_projection_takes_heads_in_a_row_or_side_by_side() -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight, residual = (torch.randn(shape, generator=rng) for shape in ((2, 3, 4, 8), (5, 32), (2, 3, 5)))
    (heads,) = run_body("LinearResidual", [x, weight, residual], {})
    (row,) = run_body("LinearResidual", [x.flatten(2), weight, residual], {})
    assert heads.shape == (2, 3, 5)
    assert (heads == row).all()
    torch.testing.assert_close(OPS["LinearResidual"].eager(x, weight, residual), residual + x.flatten(2) @ weight.T)
