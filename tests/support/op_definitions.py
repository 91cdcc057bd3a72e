"""Drives every definition of a dialect op with the same random inputs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import torch
from hypothesis import strategies as st
from nemotron_graphs.ops import DOMAIN, OPS
from nemotron_graphs.passes import InlineDialectOpsPass
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["DTYPES", "attributes_of_ops", "check_definitions", "shapes_of_ops"]

OPSET = 21
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@st.composite
def shapes_of_ops(draw: st.DrawFn) -> dict[str, int]:
    """A size for every letter of the ops' shapes; ``R/2`` is one of them."""
    groups = draw(st.integers(1, 3))
    sizes = {
        "B": draw(st.integers(1, 3)),
        "S": draw(st.integers(1, 5)),
        "G": groups,
        "H": groups * draw(st.integers(1, 3)),
        "D": 2 * draw(st.integers(2, 9)),
        "I": draw(st.integers(1, 9)),
        "O": draw(st.integers(1, 9)),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }
    sizes["T"] = sizes["P"] = sizes["S"] + draw(st.integers(0, 9))
    sizes["R/2"] = draw(st.integers(1, sizes["D"] // 2))
    sizes["(H+2G)*D"] = (sizes["H"] + 2 * groups) * sizes["D"]
    return sizes


# attributes that follow from the shapes: attribute → letter
SIZED_ATTRIBUTES = {"num_heads": "H", "num_kv_heads": "G"}


def attributes_of_ops(op: str) -> st.SearchStrategy[dict[str, Any]]:
    """Attributes of an op other than those that follow from its shapes."""
    free = [a for a in OPS[op].attributes if a.name not in SIZED_ATTRIBUTES]
    return st.fixed_dictionaries(
        {a.name: st.sampled_from(a.choices or ((1e-5, 1e-3) if a.name == "epsilon" else (a.example,))) for a in free}
    )


def with_sizes(op: str, attributes: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """The attributes, with those that follow from the shapes."""
    return attributes | {
        a.name: sizes[SIZED_ATTRIBUTES[a.name]] for a in OPS[op].attributes if a.name in SIZED_ATTRIBUTES
    }


def make_inputs(op: str, sizes: dict[str, int], with_optional: bool, dtype: str = "float32") -> list[torch.Tensor]:
    """Random inputs for an op, by the shapes of its definition; optional ones trail where asked for."""
    definition = OPS[op]
    inputs = [i for i in definition.inputs if with_optional or not i.optional]
    rng = torch.Generator().manual_seed(sizes["seed"])
    made = []
    for each in inputs:
        shape = [sizes[letter] for letter in each.shape.strip("[]").split(", ")]
        if each.type == "T":
            made.append(torch.randn(shape, generator=rng).to(DTYPES[dtype]))
        else:
            bound = sizes["P"] if each.name == "position_ids" else sizes["T"] - sizes["S"] + 1
            made.append(torch.randint(0, bound, shape, generator=rng))
    return made


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def body_model(op: str, inputs: list[torch.Tensor], attributes: dict[str, Any]) -> onnx.ModelProto:
    """A model of one node of the op; the op's function, and those that it uses, inside."""
    definition = OPS[op]
    names = [i.name for i in definition.inputs][: len(inputs)]
    outputs = [name for name, _ in definition.outputs]
    result = onnx.TensorProto.FLOAT if attributes.get("output") == "float32" else ONNX_TYPES[inputs[0].dtype]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, outputs, domain=DOMAIN, **attributes)],
        op,
        [
            onnx.helper.make_tensor_value_info(n, ONNX_TYPES[t.dtype], list(t.shape))
            for n, t in zip(names, inputs, strict=True)
        ],
        [onnx.helper.make_tensor_value_info(n, result, None) for n in outputs],
    )
    model = ir.from_proto(
        onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
            ir_version=10,
        )
    )
    InlineDialectOpsPass()(model)
    return ir.to_proto(model)


ONNX_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def run_body(op: str, inputs: list[torch.Tensor], attributes: dict[str, Any]) -> list[np.ndarray]:
    """Runs the op's ONNX function: by ONNX Runtime, or, in bf16, by ONNX's reference, since there are no kernels."""
    model = body_model(op, inputs, attributes)
    names = [i.name for i in OPS[op].inputs]
    feed = {n: to_numpy(t) for n, t in zip(names, inputs, strict=False)}
    if inputs[0].dtype == torch.bfloat16:
        return [np.asarray(each, np.float32) for each in onnx.reference.ReferenceEvaluator(model).run(None, feed)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [each.astype(np.float32) for each in session.run(None, feed)]


# the body rounds at the same places as the eager definition, but sums in another order: relative and, for results
# that are the difference of larger numbers, of the largest result (or of one)
TOLERANCE = {"float32": (2e-6, 2e-5), "float16": (4e-3, 4e-3), "bfloat16": (3e-2, 3e-2)}


def check_definitions(
    op: str, with_optional: bool, dtype: str, sizes: dict[str, int], attributes: dict[str, Any] | None = None
) -> None:
    """Eager, torch op, fake, schema and ONNX body, on the same random inputs."""
    inputs = make_inputs(op, sizes, with_optional, dtype)
    attributes = with_sizes(op, attributes or {}, sizes)
    expected = as_tuple(OPS[op].eager(*inputs, **attributes))
    result = torch.float32 if attributes.get("output") == "float32" else DTYPES[dtype]
    for found, right in zip(as_tuple(OPS[op](*inputs, **attributes)), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=0)
        assert found.dtype == result
    for found_array, right in zip(run_body(op, inputs, attributes), expected, strict=True):
        right_array = right.float().numpy()
        relative, of_largest = TOLERANCE[dtype]
        largest = max(1.0, float(np.abs(right_array).max()))
        np.testing.assert_allclose(found_array, right_array, rtol=relative, atol=of_largest * largest)
    mode = FakeTensorMode()
    with mode:
        fakes = as_tuple(OPS[op](*[mode.from_tensor(t) for t in inputs], **attributes))
    assert [(fake.shape, fake.dtype) for fake in fakes] == [(right.shape, right.dtype) for right in expected]
    # the schema's letters say the same shapes
    for (_, shape), right in zip(OPS[op].outputs, expected, strict=True):
        assert list(right.shape) == [sizes[letter] for letter in shape.strip("[]").split(", ")]
