"""The plugin of ``LayerNormLinear``: norm, projection, bias and relu² of few rows.

One row takes one launch; several are normalised by a launch of their own, into the workspace.

Shapes: B rows, S tokens, I input features, O output features.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.launches.rotary import ITEM_BYTES
from nemotron_plugins.tensorrt.fields import Attribute, FieldSpec
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor, row_buckets_of, smallest_bucket

__all__ = ["LayerNormLinear"]

_ROWS = "layernorm_rows"


class LayerNormLinear(PluginOp):
    """Inputs x [B, S, I], norm_weight and norm_bias [I], weight [O, I] and optionally bias [O]; output [B, S, O]."""

    name = "LayerNormLinear"
    attributes = (
        FieldSpec("epsilon", float),
        FieldSpec("activation", str, "none", choices=("none", "relu_squared")),
        FieldSpec("output", str, "same", choices=("same", "float32")),
        FieldSpec("kernel", str),
    )
    inputs = "TTTTT"
    arguments = {  # noqa: RUF012
        "layernorm_linear_kernel": (
            "x_ptr", "norm_weight_ptr", "norm_bias_ptr", "weight_ptr", "bias_ptr", "out_ptr", "rows",
        ),
        "layernorm_rows_kernel": ("x_ptr", "norm_weight_ptr", "norm_bias_ptr", "out_ptr"),
    }  # fmt: skip

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        super().__init__(values, kernels)
        self._prefix = f"layernorm_linear.{values['kernel']}"
        self._buckets = row_buckets_of(self.name, self._prefix, list(kernels))
        for key, record in self.records.items():
            # an ONNX attribute has fp32's digits
            epsilon = float(record.constexprs["EPSILON"])
            if _fp32(epsilon) != _fp32(float(values["epsilon"])):
                self._refuse(f"a kernel compiled for EPSILON = {epsilon}", f"the node's {values['epsilon']}", key)
            if key == _ROWS:
                continue
            if not record.constexprs["HAS_NORM"] and _ROWS not in kernels:
                self._refuse("no such kernel", f"one in front of {key}", _ROWS)
            self._check_constant(key, "RELU_SQUARED", values["activation"] == "relu_squared", "the node's activation")
            kind = dict(record.arguments)["out_ptr"]
            if (kind == "*fp32") != (values["output"] == "float32" or self.dtype == "float32"):
                self._refuse(f"a kernel that writes {kind}", f"the node's output '{values['output']}'", key)

    @classmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """The named kernel for each bucket of rows, and the norm of several rows where there is one."""
        prefix = f"layernorm_linear.{values['kernel']}"
        return [
            *(f"{prefix}.r{rows}" for rows in row_buckets_of(cls.name, prefix, held)),
            *(key for key in (_ROWS,) if key in held),
        ]

    @property
    def outputs(self) -> str:
        """Of the run dtype or float32, by the attribute."""
        return "F" if self.values["output"] == "float32" else "T"

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[B, S, O]."""
        x, weight = inputs[0], inputs[3]
        return [[x[0], x[1], weight[0]]]

    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Features are the kernels'; a bias is there where they read it."""
        x, norm_weight, norm_bias, weight = inputs[:4]
        for key, record in self.records.items():
            if key == _ROWS:
                self._check_size("x's width", x.shape[2], int(record.constexprs["INPUTS"]))
                continue
            I, O = int(record.constexprs["INPUTS"]), int(record.constexprs["OUTPUTS"])  # noqa: E741
            self._check_constant(key, "HAS_BIAS", len(inputs) == len(self.inputs), "by the node's inputs")
            self._check_size("x's width", x.shape[2], I)
            self._check_size("length of norm_weight", norm_weight.shape[0], I)
            self._check_size("length of norm_bias", norm_bias.shape[0], I)
            self._check_size("weight's rows", weight.shape[0], O)
            self._check_size("weight's columns", weight.shape[1], I)
            for bias in inputs[4:]:
                self._check_size("length of bias", bias.shape[0], O)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The normalised rows [B, S, I], where a number of rows up to these has a kernel without a norm."""
        B, S, I = inputs[0].shape  # noqa: E741
        largest = smallest_bucket(B * S, self._buckets)
        if all(self._has_norm(bucket) for bucket in self._buckets if bucket <= largest):
            return 0
        return B * S * I * ITEM_BYTES[self.dtype]

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        x, norm_weight, norm_bias, weight, *bias = inputs
        B, S = x.shape[:2]
        bucket = smallest_bucket(B * S, self._buckets)
        values = {
            "x_ptr": x.address,
            "norm_weight_ptr": norm_weight.address,
            "norm_bias_ptr": norm_bias.address,
            "weight_ptr": weight.address,
            "bias_ptr": bias[0].address if bias else 0,
            "out_ptr": outputs[0].address,
            "rows": B * S,
        }
        if not self._has_norm(bucket):
            self._launch(_ROWS, stream, values | {"out_ptr": workspace}, B=B, S=S)
            values["x_ptr"] = workspace
        self._launch(f"{self._prefix}.r{bucket}", stream, values, B=B, S=S)

    def _has_norm(self, bucket: int) -> bool:
        return bool(self.records[f"{self._prefix}.r{bucket}"].constexprs["HAS_NORM"])


def _fp32(value: float) -> bytes:
    return struct.pack("f", value)
