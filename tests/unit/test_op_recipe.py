"""CONTRIBUTING's recipe for a new op, followed to the letter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from nemotron_graphs.ops import DOMAIN, OPS, OpDefinition
from nemotron_graphs.passes import InlineDialectOpsPass
from support.op_definitions import DTYPES, check_definitions, shapes_of_ops

from nemotron_export.tracing import translations
from nemotron_export.tracing.exporter import ExampleInput, trace_module


@pytest.fixture(scope="module")
def recipe() -> OpDefinition:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding an op\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names["squared_relu"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_definitions_of_the_recipe_agree(recipe: OpDefinition, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, recipe.name, recipe)

    @settings(max_examples=15, deadline=None)
    @given(sizes=shapes_of_ops())
    def drive(sizes: dict[str, int]) -> None:
        check_definitions(recipe.name, False, dtype, sizes)

    drive()


def test_the_op_is_traced_and_lowered(recipe: OpDefinition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, recipe.name, recipe)
    _ = recipe.torch_op
    monkeypatch.setitem(
        translations.TRANSLATIONS, torch.ops.nemotron.SquaredRelu.default, translations.dialect(recipe.name)
    )

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.inner(recipe(*args)),)

    x = ExampleInput("x", ("batch", "tokens", 4), torch.float32)
    model = trace_module(Wrapped(), [x], ["y"], wrapped="inner").model
    assert [(node.domain, node.op_type) for node in model.graph] == [(DOMAIN, "SquaredRelu")]
    InlineDialectOpsPass()(model)
    assert [node.op_type for node in model.graph] == ["Relu", "Mul"]
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], np.maximum(values, 0) ** 2)
