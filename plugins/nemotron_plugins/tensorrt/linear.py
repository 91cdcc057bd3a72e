"""The plugins of ``LayerNormLinear`` and ``LinearResidual``: projections, with a kernel for each bucket of rows.

Shapes: B sequences, S tokens, I input features (in heads, where attention left them so), O output features; a row is a
token of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_formats.dtypes import item_bytes

from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.linear import (
    ROW_BUCKETS,
    layernorm_linear_rule,
    layernorm_rows_rule,
    linear_residual_rule,
    row_bucket,
    row_buckets,
)
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Operand, PluginOp, Tensor

__all__ = ["LayerNormLinear", "LinearResidual"]

_NORM = "norm"


class _ProjectionOp(PluginOp):
    """The kernel ``rR`` takes up to R rows, the largest any number: see :func:`row_bucket`."""

    @classmethod
    def _buckets(cls, request: KernelRequest) -> tuple[int, ...]:
        """Of every number of rows that a pass may have; a number of tokens that varies has no bound."""
        tokens = request.shapes[0][1]
        return ROW_BUCKETS if tokens is None else row_buckets(request.sequences * tokens)

    def _variant(self, rows: int) -> str:
        """Of the kernel that so many rows take."""
        return f"r{min(row_bucket(rows), self._buckets(self.request)[-1])}"

    @classmethod
    def _common(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Any]:
        """What the launch rules of all projections take of a request."""
        sizes = cls.sizes_of(request.shapes)
        has_bias = len(request.shapes) == len(cls.inputs)
        return {
            "inputs": sizes["I"], "outputs": sizes["O"], "dtype": request.dtype, "has_bias": has_bias, "pdl": gpu.pdl,
        }  # fmt: skip


class LayerNormLinear(_ProjectionOp):
    """The kernels are those of its base class; where there are several, ``norm`` runs before all but ``r1``."""

    name = "LayerNormLinear"
    attributes = {  # noqa: RUF012
        "epsilon": float, "activation": ("none", "relu_squared"), "output": ("same", "float32"),
    }  # fmt: skip
    inputs = (
        Operand("x", "T", "BSI"), Operand("norm_weight", "T", "I"), Operand("norm_bias", "T", "I"),
        Operand("weight", "T", "OI"), Operand("bias", "T", "O", optional=True),
    )  # fmt: skip

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        common, attributes = cls._common(request, gpu), dict[str, Any](request.attributes)
        buckets = cls._buckets(request)
        found = {f"r{rows}": layernorm_linear_rule(**common, **attributes, rows=rows) for rows in buckets}
        if buckets != (1,):
            found[_NORM] = layernorm_rows_rule(inputs=common["inputs"], epsilon=attributes["epsilon"], pdl=gpu.pdl)
        return found

    @property
    def outputs(self) -> tuple[Operand, ...]:
        """Of the run dtype or float32, by the attribute."""
        return (Operand("out", "F" if self.values["output"] == "float32" else "T", "BSO"),)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The normalised rows [B, S, I], of several."""
        B, S, I = inputs[0].shape  # noqa: E741
        return B * S * I * item_bytes(self.dtype) if B * S > 1 else 0

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B, S = inputs[0].shape[:2]
        values = self._addresses(inputs, outputs) | {"rows": B * S}
        variant = self._variant(B * S)
        if not self.records[variant].constexprs["HAS_NORM"]:
            self._launch(_NORM, stream, values | {"out_ptr": workspace}, B=B, S=S)
            values["x_ptr"] = workspace
        self._launch(variant, stream, values, B=B, S=S)


class LinearResidual(_ProjectionOp):
    """Projection, bias and residual sum in one launch."""

    name = "LinearResidual"
    inputs = (
        Operand("x", "T", "BS*I"), Operand("weight", "T", "OI"), Operand("residual", "T", "BSO"),
        Operand("bias", "T", "O", optional=True),
    )  # fmt: skip
    outputs = (Operand("out", "T", "BSO"),)

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        common = cls._common(request, gpu)
        return {f"r{rows}": linear_residual_rule(**common, rows=rows) for rows in cls._buckets(request)}

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        B, S = inputs[0].shape[:2]
        values = self._addresses(inputs, outputs) | {"rows": B * S}
        self._launch(self._variant(B * S), stream, values, B=B, S=S)
