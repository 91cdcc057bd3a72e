"""How each op of a traced module is written in ONNX: one rule per op, and an op without a rule is refused.

The ops of the ``nemotron`` dialect become nodes of its domain. A linear does too (``Linear``), so that a target lowers
it on the checkpoint's own [out, in] layout as it likes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from nemotron_graphs.ops import DOMAIN, OPS

from nemotron_export.tracing.writer import Arg, GraphWriter

__all__ = ["TRANSLATIONS", "dialect"]

Rule = Callable[..., ir.Value]


def dialect(op_type: str, domain: str = DOMAIN) -> Rule:
    """The rule of an op that is one node with the same inputs, of the dialect unless another domain is named."""

    def rule(g: GraphWriter, *args: Arg) -> ir.Value:
        return g.node(op_type, args, domain=domain)

    return rule


def _embedding(g: GraphWriter, weight: ir.Value, ids: ir.Value, *unused: Any) -> ir.Value:
    # the padding index and what follows it matter to gradients alone
    return g.node("Gather", [weight, ids], axis=0)


def _layer_norm(
    g: GraphWriter, x: ir.Value, shape: Sequence[int], gamma: ir.Value, beta: ir.Value, eps: float, *unused: Any
) -> ir.Value:
    # stash_type 1: mean and variance in fp32, as PyTorch's kernels compute them in every dtype
    return g.node("LayerNormalization", [x, gamma, beta], axis=-len(shape), epsilon=eps, stash_type=1)


def _binary(op_type: str) -> Rule:
    def rule(g: GraphWriter, a: Arg, b: Arg) -> ir.Value:
        like = a if isinstance(a, ir.Value) else b
        assert isinstance(like, ir.Value)
        return g.node(op_type, [g.constant_like(each, like) for each in (a, b)])

    return rule


def _reshape(g: GraphWriter, x: ir.Value, shape: Sequence[Any]) -> ir.Value:
    """A constant target: a number as it is, 0 where x has the dim on the same axis, -1 for one more."""
    target: list[int] = []
    assert x.shape is not None
    for axis, dim in enumerate(g.result_dims()):
        if isinstance(dim, int):
            target.append(dim)
        elif axis < len(x.shape) and isinstance(x.shape[axis], ir.SymbolicDim) and x.shape[axis] == dim:
            target.append(0)
        else:
            target.append(-1)
    assert target.count(-1) <= 1, f"a reshape to {shape}, more than one dim of which must be computed"
    return g.node("Reshape", [x, g.constant(np.array(target, np.int64))])


def _unsqueeze(g: GraphWriter, x: ir.Value, axis: int) -> ir.Value:
    return g.node("Unsqueeze", [x, g.constant(np.array([axis], np.int64))])


def _expand(g: GraphWriter, x: ir.Value, shape: Sequence[Any]) -> ir.Value:
    kept = [1 if dim == -1 else dim for dim in shape]
    assert all(isinstance(dim, int) for dim in kept), f"an expand to {shape}, whose dims are not all numbers"
    return g.node("Expand", [x, g.constant(np.array(kept, np.int64))])


def _gather(g: GraphWriter, x: ir.Value, axis: int, index: ir.Value) -> ir.Value:
    return g.node("GatherElements", [x, index], axis=axis)


def _arange(g: GraphWriter, end: Arg) -> ir.Value:
    zero, one = (g.constant(np.array(number, np.int64)) for number in (0, 1))
    return g.node("Range", [zero, g.constant_like(end, zero), one])


def _cast(g: GraphWriter, x: ir.Value, dtype: torch.dtype, *unused: Any) -> ir.Value:
    return g.cast(x, dtype)


def _sym_size(g: GraphWriter, x: ir.Value, axis: int) -> ir.Value:
    return g.node("Squeeze", [g.node("Shape", [x], start=axis, end=axis + 1)])


_aten = torch.ops.aten

TRANSLATIONS: dict[Any, Rule] = {
    # an op of several outputs is made by passes, never traced
    **{getattr(torch.ops.nemotron, op.name).default: dialect(op.name) for op in OPS.values() if len(op.outputs) == 1},
    _aten.linear.default: dialect("Linear"),
    _aten.embedding.default: _embedding,
    _aten.layer_norm.default: _layer_norm,
    _aten.add.Tensor: _binary("Add"),
    _aten.mul.Tensor: _binary("Mul"),
    _aten.relu.default: dialect("Relu", domain=""),
    _aten.view.default: _reshape,
    _aten.reshape.default: _reshape,
    _aten.unsqueeze.default: _unsqueeze,
    _aten.expand.default: _expand,
    _aten.gather.default: _gather,
    _aten.arange.default: _arange,
    _aten.to.dtype: _cast,
    _aten.sym_size.int: _sym_size,
    operator.add: _binary("Add"),
    operator.mul: _binary("Mul"),
}
