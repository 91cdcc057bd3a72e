"""Random calls of the projections' kernels beside the eager definitions of their ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from nemotron_graphs.ops import layernorm_linear, linear_residual

__all__ = ["LinearCase", "definition", "linear_inputs", "run_argmax", "run_kernel", "run_linear_interpreted"]


@dataclass(frozen=True)
class LinearCase:
    """Sizes of a projection: B rows, S tokens, input and output features; with a norm in front, or a residual."""

    B: int
    inputs: int
    outputs: int
    S: int = 1
    normed: bool = False
    bias: bool = False
    activation: str = "none"
    output: str = "same"
    epsilon: float = 1e-5

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of LayerNormLinear."""
        return {"epsilon": self.epsilon, "activation": self.activation, "output": self.output}


def linear_inputs(case: LinearCase, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """The inputs of LayerNormLinear or LinearResidual, with weights that keep outputs near one."""
    torch.manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    x = normal(case.B, case.S, case.inputs) * 2 + 0.5
    weight = normal(case.outputs, case.inputs) * case.inputs**-0.5
    if case.normed:
        made = [x, normal(case.inputs) * 0.3, normal(case.inputs) * 0.3, weight]
    else:
        made = [x, weight, normal(case.B, case.S, case.outputs)]
    if case.bias:
        made.append(normal(case.outputs))
    return tuple(t.to(dtype) for t in made)


def definition(case: LinearCase, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What the op's eager definition gives."""
    if case.normed:
        return layernorm_linear.eager(*inputs, **case.attributes)
    return linear_residual.eager(*inputs)


def run_kernel(case: LinearCase, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What the kernel gives."""
    from support.torch_kernels import run_op

    name = "LayerNormLinear" if case.normed else "LinearResidual"
    return run_op(name, inputs, case.attributes if case.normed else {})[0]


def run_linear_interpreted(
    case: LinearCase, dtype: torch.dtype, *, wide: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and definition in one dtype, under the interpreter; ``wide`` takes the blocks of many features."""
    import triton
    from nemotron_plugins.launches import linear as linear_rules

    assert triton.knobs.runtime.interpret, "Triton was imported without its interpreter"
    torch.set_num_threads(1)
    inputs = linear_inputs(case, dtype)
    with mock.patch.object(linear_rules, "_LONG", 1 if wide else linear_rules._LONG):
        got = run_kernel(case, inputs)
    return got.numpy(), definition(case, inputs).numpy()


def run_argmax(logits: np.ndarray, device: str = "cpu") -> np.ndarray:
    """The kernels' choice for logits [B, V]."""
    from support.torch_kernels import argmax

    torch.set_num_threads(1)
    return argmax(torch.from_numpy(logits).to(device)).cpu().numpy()
