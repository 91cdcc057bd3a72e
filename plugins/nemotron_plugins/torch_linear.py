"""Launches the kernels of projections and of the greedy choice on PyTorch tensors.

Shapes: B rows, S new tokens, I input features, O output features, V vocabulary.
"""

from __future__ import annotations

import torch

from nemotron_plugins.launches.argmax import argmax_combine_rule, argmax_rule
from nemotron_plugins.launches.linear import (
    layernorm_linear_rule,
    layernorm_rows_rule,
    linear_residual_rule,
    row_bucket,
)
from nemotron_plugins.torch_call import check_tensor, has_pdl, multiprocessors_of, run_launch

__all__ = ["argmax", "layernorm_linear", "linear_residual"]


def layernorm_linear(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float,
    activation: str = "none",
    output: str = "same",
) -> torch.Tensor:
    """LayerNorm1P of x, its projection, and relu² where ``activation`` is ``relu_squared``: [B, S, O].

    Args:
        x: [B, S, I].
        norm_weight: [I]: gamma - 1.
        norm_bias: [I].
        weight: [O, I].
        bias: [O].
        epsilon: of the norm.
        activation: ``none`` or ``relu_squared``.
        output: ``same`` (x's dtype) or ``float32``.

    Raises:
        RequestError: tensors of other shapes, dtypes or devices, or not contiguous.
    """
    B, S, inputs = x.shape
    outputs = weight.shape[0]
    for name, tensor, shape in (
        ("x", x, (B, S, inputs)),
        ("norm_weight", norm_weight, (inputs,)),
        ("norm_bias", norm_bias, (inputs,)),
        ("weight", weight, (outputs, inputs)),
        *((("bias", bias, (outputs,)),) if bias is not None else ()),
    ):
        check_tensor(name, tensor, shape, x)
    launch = layernorm_linear_rule(
        inputs=inputs,
        outputs=outputs,
        epsilon=epsilon,
        activation=activation,
        output=output,
        dtype=str(x.dtype).removeprefix("torch."),
        rows=row_bucket(B * S),
        has_bias=bias is not None,
        pdl=has_pdl(x),
    )
    if not launch.constexprs["HAS_NORM"]:
        normed = torch.empty_like(x)
        rows = layernorm_rows_rule(inputs=inputs, epsilon=epsilon, pdl=has_pdl(x))
        run_launch(rows, x, norm_weight, norm_bias, normed, B=B, S=S)
        x = normed
    out = x.new_empty((B, S, outputs), dtype=torch.float32 if output == "float32" else x.dtype)
    run_launch(launch, x, norm_weight, norm_bias, weight, weight if bias is None else bias, out, B * S, B=B, S=S)
    return out


def linear_residual(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """residual + x·Wᵀ + bias: [B, S, O].

    Args:
        x: [B, S, I].
        weight: [O, I].
        residual: [B, S, O].
        bias: [O].

    Raises:
        RequestError: tensors of other shapes, dtypes or devices, or not contiguous.
    """
    B, S, inputs = x.shape
    outputs = weight.shape[0]
    for name, tensor, shape in (
        ("x", x, (B, S, inputs)),
        ("weight", weight, (outputs, inputs)),
        ("residual", residual, (B, S, outputs)),
        *((("bias", bias, (outputs,)),) if bias is not None else ()),
    ):
        check_tensor(name, tensor, shape, x)
    launch = linear_residual_rule(
        inputs=inputs,
        outputs=outputs,
        dtype=str(x.dtype).removeprefix("torch."),
        rows=row_bucket(B * S),
        has_bias=bias is not None,
        pdl=has_pdl(x),
    )
    out = torch.empty_like(residual)
    run_launch(launch, x, weight, weight if bias is None else bias, residual, out, B * S, B=B, S=S)
    return out


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The index of the largest of each row, int64 [B]; the lowest of equal ones; NaN counts as infinity.

    Args:
        logits: [B, V], float32.

    Raises:
        RequestError: another shape or dtype, or not contiguous.
    """
    check_tensor("logits", logits, (logits.shape[0], logits.shape[-1]), logits, torch.float32)
    B, vocab = logits.shape
    pdl = has_pdl(logits)
    launch = argmax_rule(vocab=vocab, multiprocessors=multiprocessors_of(logits), pdl=pdl)
    parts = int(launch.constexprs["PARTS"])
    partial = logits.new_empty((B, parts))
    partial_index = logits.new_empty((B, parts), dtype=torch.int64)
    tokens = logits.new_empty((B,), dtype=torch.int64)
    run_launch(launch, logits, partial, partial_index, B=B)
    run_launch(argmax_combine_rule(parts=parts, pdl=pdl), partial, partial_index, tokens, B=B)
    return tokens
