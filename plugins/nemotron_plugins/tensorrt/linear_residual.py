"""The plugin of ``LinearResidual``: projection, bias and residual sum of few rows in one launch.

Shapes: B sequences, S tokens, I input features (in heads, where attention left them so), O output features.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.linear import linear_residual_rule
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Operand, Tensor
from nemotron_plugins.tensorrt.projection import ProjectionOp

__all__ = ["LinearResidual"]


class LinearResidual(ProjectionOp):
    """The kernels are those of :class:`ProjectionOp`."""

    name = "LinearResidual"
    inputs = (Operand("T", "BS*I"), Operand("T", "OI"), Operand("T", "BSO"), Operand("T", "O", optional=True))
    outputs = (Operand("T", "BSO"),)

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        """See :meth:`PluginOp.launches`."""
        sizes = cls.sizes_of(request.shapes)
        return {
            f"r{rows}": linear_residual_rule(
                inputs=sizes["I"], outputs=sizes["O"], dtype=request.dtype, rows=rows,
                has_bias=len(request.shapes) == len(cls.inputs), pdl=gpu.pdl,
            )
            for rows in cls._buckets(request)
        }  # fmt: skip

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
        self._launch(self._variant(B * S), stream, values, B=B, S=S)
