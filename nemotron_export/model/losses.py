"""The losses of all heads, as transformers computes them.

Shapes: B sequences, S tokens, C classes, V vocab_size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nemotron_errors import RequestError

__all__ = ["causal_lm_loss", "classification_loss", "span_loss", "token_loss"]

_IGNORED = -100
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def causal_lm_loss(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in fp32; labels of -100 do not count."""
    shifted_BS = F.pad(labels_BS, (0, 1), value=_IGNORED)[..., 1:].contiguous().to(logits_BSV.device)
    return F.cross_entropy(
        logits_BSV.float().view(-1, logits_BSV.shape[-1]), shifted_BS.view(-1), ignore_index=_IGNORED
    )


def token_loss(logits_BSC: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per token in fp32; labels of -100 do not count."""
    labels = labels_BS.view(-1).to(logits_BSC.device)
    return F.cross_entropy(logits_BSC.view(-1, logits_BSC.shape[-1]).float(), labels, ignore_index=_IGNORED)


def classification_loss(logits_BC: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Loss of a sequence classifier.

    Args:
        logits_BC: pooled logits.
        labels: [B] classes; [B] or [B, C] numbers for regression; [B, C] zeros and ones for several labels.
        problem_type: the config's; where None, regression for one class, else several labels unless labels are ints.

    Raises:
        RequestError: an unknown problem type.
    """
    classes = logits_BC.shape[-1]
    if problem_type is None:
        single = labels.dtype in (torch.int64, torch.int32)
        problem_type = _PROBLEM_TYPES[0] if classes == 1 else _PROBLEM_TYPES[1] if single else _PROBLEM_TYPES[2]
    labels = labels.to(logits_BC.device)
    if problem_type == "regression":
        return F.mse_loss(logits_BC.squeeze(), labels.squeeze()) if classes == 1 else F.mse_loss(logits_BC, labels)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits_BC.view(-1, classes), labels.view(-1), ignore_index=_IGNORED)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits_BC, labels)
    raise RequestError(f"problem_type '{problem_type}'", f"one of {', '.join(_PROBLEM_TYPES)}", "correct the config")


def span_loss(
    start_logits_BS: torch.Tensor, end_logits_BS: torch.Tensor, start_B: torch.Tensor, end_B: torch.Tensor
) -> torch.Tensor:
    """Mean of the cross-entropies of a span's start and end; positions past the input do not count."""
    outside = start_logits_BS.shape[1]

    def one(logits_BS: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        position_B = position.squeeze(-1) if position.ndim > 1 else position
        return F.cross_entropy(logits_BS, position_B.to(logits_BS.device).clamp(0, outside), ignore_index=outside)

    return (one(start_logits_BS, start_B) + one(end_logits_BS, end_B)) / 2
