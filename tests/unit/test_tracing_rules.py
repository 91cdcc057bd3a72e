"""The rules that write traced ops in ONNX, one by one, run by ONNX Runtime against PyTorch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from nemotron_errors import GraphError

from nemotron_export.tracing.exporter import ExampleInput, trace_module


class Wrapped(torch.nn.Module):
    def __init__(self, function, **parameters: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.inner = torch.nn.Module()
        for name, value in parameters.items():
            self.inner.register_parameter(name, torch.nn.Parameter(value))
        self.function = function

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.function(self.inner, *args),)


X = ExampleInput("x", ("batch", "tokens", 6), torch.float32)
IDS = ExampleInput("ids", ("batch", "tokens"))
CASES = {
    "embedding": (lambda m, ids: torch.nn.functional.embedding(ids, m.weight), [IDS], {"weight": (9, 4)}),
    "layer norm": (
        lambda m, x: torch.nn.functional.layer_norm(x, (6,), m.gamma + 1, m.beta, 1e-3),
        [X],
        {"gamma": (6,), "beta": (6,)},
    ),
    "relu squared": (lambda m, x: torch.relu(x) * torch.relu(x), [X], {}),
    "scalars": (lambda m, x: (x + 2) * 0.5, [X], {}),
    "split heads": (lambda m, x: x.view(*x.shape[:-1], -1, 2), [X], {}),
    "merge tokens": (lambda m, x: x.reshape(x.shape[0], -1), [X], {}),
    "gather": (
        lambda m, x, at: torch.gather(x, 1, at.unsqueeze(-1).expand(-1, -1, 6)),
        [X, ExampleInput("at", ("batch", "k"))],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_rule_computes_what_pytorch_computes(name: str) -> None:
    function, inputs, shapes = CASES[name]
    generator = np.random.default_rng(0)
    parameters = {key: generator.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    module = Wrapped(function, **{key: torch.zeros(shape, device="meta") for key, shape in shapes.items()})
    traced = trace_module(module, inputs, ["y"], wrapped="inner")
    assert sorted(traced.weights) == sorted(parameters)
    sizes = {"batch": 3, "tokens": 5, "k": 2}
    feed = {}
    for each in inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in each.dims]
        feed[each.name] = (
            generator.normal(size=shape).astype(np.float32)
            if each.dtype == torch.float32
            else generator.integers(0, 5, shape)
        )
    session = onnxruntime.InferenceSession(
        ir.to_proto(traced.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(["y"], {**feed, **parameters})
    inner = torch.nn.Module()
    for key, value in parameters.items():
        setattr(inner, key, torch.from_numpy(value))
    expected = function(inner, *(torch.from_numpy(feed[each.name]) for each in inputs)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    (output,) = traced.model.graph.outputs
    assert output.shape is not None
    assert output.shape.rank() == expected.ndim


def test_dims_keep_the_names_that_the_caller_chose() -> None:
    traced = trace_module(Wrapped(lambda m, x: torch.relu(x)), [X], ["y"], wrapped="inner")
    assert [str(dim) for dim in traced.model.graph.outputs[0].shape] == ["batch", "tokens", "6"]  # type: ignore[union-attr]
    assert [value.name for value in traced.model.graph.inputs] == ["x"]


def test_an_op_without_a_rule_is_refused() -> None:
    with pytest.raises(GraphError, match=r"the op aten\.tanh\.default; expected one of .*aten\.relu"):
        trace_module(Wrapped(lambda m, x: torch.tanh(x)), [X], ["y"], wrapped="inner")
