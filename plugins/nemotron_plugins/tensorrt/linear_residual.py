"""The plugin of ``LinearResidual``: projection, bias and residual sum of few rows in one launch.

Shapes: B rows, S tokens, I input features, O output features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.tensorrt.fields import Attribute, FieldSpec
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor, row_buckets_of, smallest_bucket

__all__ = ["LinearResidual"]


class LinearResidual(PluginOp):
    """Inputs x [B, S, I] or [B, S, H, D], weight [O, I], residual [B, S, O], optionally bias [O]; output [B, S, O]."""

    name = "LinearResidual"
    attributes = (FieldSpec("kernel", str),)
    inputs = "TTTT"
    outputs = "T"
    arguments = {  # noqa: RUF012
        "linear_residual_kernel": ("x_ptr", "weight_ptr", "bias_ptr", "residual_ptr", "out_ptr", "rows")
    }

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        self._prefix = f"linear_residual.{values['kernel']}"
        self._buckets = row_buckets_of(self.name, self._prefix, list(kernels))

    @classmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """The named kernel for each bucket of rows."""
        prefix = f"linear_residual.{values['kernel']}"
        return [f"{prefix}.r{rows}" for rows in row_buckets_of(cls.name, prefix, held)]

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[B, S, O]."""
        return [[*inputs[2]]]

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Features are the kernels'; a bias is there where they read it."""
        x, weight, residual = inputs[:3]
        for key, record in self.records.items():
            I, O = int(record.constexprs["INPUTS"]), int(record.constexprs["OUTPUTS"])  # noqa: E741
            self._check_constant(key, "HAS_BIAS", len(inputs) == len(self.inputs), "by the node's inputs")
            self._check_size("x's width", math.prod(x.shape[2:]), I)
            self._check_size("weight's rows", weight.shape[0], O)
            self._check_size("weight's columns", weight.shape[1], I)
            self._check_size("residual's width", residual.shape[2], O)
            for bias in inputs[3:]:
                self._check_size("length of bias", bias.shape[0], O)

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        x, weight, residual, *bias = inputs
        B, S = x.shape[:2]
        values = {
            "x_ptr": x.address,
            "weight_ptr": weight.address,
            "bias_ptr": bias[0].address if bias else 0,
            "residual_ptr": residual.address,
            "out_ptr": outputs[0].address,
            "rows": B * S,
        }
        self._launch(f"{self._prefix}.r{smallest_bucket(B * S, self._buckets)}", stream, values, B=B, S=S)
