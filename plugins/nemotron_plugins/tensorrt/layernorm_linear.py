"""The plugin of ``LayerNormLinear``: norm, projection, bias and relu² of few rows.

One row takes one launch; several are normalised by a launch of their own, into the workspace.

Shapes: B sequences, S tokens, I input features, O output features; a row is a token of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_formats.dtypes import item_bytes

from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.linear import layernorm_linear_rule, layernorm_rows_rule
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import Operand, Tensor
from nemotron_plugins.tensorrt.projection import ProjectionOp

__all__ = ["LayerNormLinear"]

_NORM = "norm"


class LayerNormLinear(ProjectionOp):
    """The kernels are those of :class:`ProjectionOp`; where there are several, ``norm`` runs before all but ``r1``."""

    name = "LayerNormLinear"
    attributes = {  # noqa: RUF012
        "epsilon": float, "activation": ("none", "relu_squared"), "output": ("same", "float32"),
    }  # fmt: skip
    inputs = (
        Operand("T", "BSI"), Operand("T", "I"), Operand("T", "I"), Operand("T", "OI"), Operand("T", "O", optional=True),
    )  # fmt: skip

    @classmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        """See :meth:`PluginOp.launches`."""
        sizes, buckets = cls.sizes_of(request.shapes), cls._buckets(request)
        attributes = dict(request.attributes)
        epsilon = float(attributes["epsilon"])
        found = {
            f"r{rows}": layernorm_linear_rule(
                inputs=sizes["I"], outputs=sizes["O"], epsilon=epsilon, activation=str(attributes["activation"]),
                output=str(attributes["output"]), dtype=request.dtype, rows=rows,
                has_bias=len(request.shapes) == len(cls.inputs), pdl=gpu.pdl,
            )
            for rows in buckets
        }  # fmt: skip
        if buckets != (1,):
            found[_NORM] = layernorm_rows_rule(inputs=sizes["I"], epsilon=epsilon, pdl=gpu.pdl)
        return found

    @property
    def outputs(self) -> tuple[Operand, ...]:
        """Of the run dtype or float32, by the attribute."""
        return (Operand("F" if self.values["output"] == "float32" else "T", "BSO"),)

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """The normalised rows [B, S, I], of several."""
        B, S, I = inputs[0].shape  # noqa: E741
        return B * S * I * item_bytes(self.dtype) if B * S > 1 else 0

    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """See :meth:`PluginOp.enqueue`."""
        x, norm_weight, norm_bias, weight, *bias = inputs
        B, S = x.shape[:2]
        values = {
            "x_ptr": x.address,
            "norm_weight_ptr": norm_weight.address,
            "norm_bias_ptr": norm_bias.address,
            "weight_ptr": weight.address,
            "bias_ptr": bias[0].address if bias else 0,
            "out_ptr": outputs[0].address,
            "rows": B * S,
        }
        variant = self._variant(B * S)
        if not self.records[variant].constexprs["HAS_NORM"]:
            self._launch(_NORM, stream, values | {"out_ptr": workspace}, B=B, S=S)
            values["x_ptr"] = workspace
        self._launch(variant, stream, values, B=B, S=S)
