"""Attention by PyTorch's flash kernel alone: what that kernel does not take is refused, never given to another.

Shapes: B sequences, S new tokens, K keys, T capacity, H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from nemotron_errors import RequestError
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["flash_attention"]

_LARGEST_HEAD_ON_CUDA = 256


def flash_attention(
    q_BHSD: torch.Tensor,
    k_BGTD: torch.Tensor,
    v_BGTD: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
    filled: int,
) -> torch.Tensor:
    """Scaled dot-product attention in PyTorch's flash kernel, on the CPU or CUDA.

    Args:
        k_BGTD: keys, the new tokens' included.
        mask: what is visible (boolean, or additive in q's dtype), broadcast to [B, H, S, T]; where None, each token
            sees the filled part of the cache up to its own place; the new tokens are the last S of it.
        filled: tokens that the cache holds, K; what comes after them is cut off where there is no mask.

    Returns:
        [B, H, S, D].

    Raises:
        RequestError: inputs that the kernel does not take.
    """
    S = q_BHSD.shape[2]
    if mask is None:
        k_BGTD, v_BGTD = k_BGTD[:, :, :filled], v_BGTD[:, :, :filled]
    _refuse(q_BHSD, mask, dropout)
    grouped = q_BHSD.shape[1] != k_BGTD.shape[1]
    if q_BHSD.device.type == "cuda":
        _ask_cuda(q_BHSD, k_BGTD, v_BGTD, dropout, grouped)
    # a chunk after a past: is_causal would align it with the first keys, not with the last
    after_past = mask is None and 1 < S < k_BGTD.shape[2]
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(
                q_BHSD,
                k_BGTD,
                v_BGTD,
                attn_mask=_lower_right(S, k_BGTD.shape[2]) if after_past else mask,
                dropout_p=dropout,
                is_causal=mask is None and S > 1 and not after_past,
                scale=scale,
                enable_gqa=grouped,
            )
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise _refusal(f"{_described(q_BHSD)}, which it does not take", "inputs of PyTorch's flash kernel") from error


def _refuse(q_BHSD: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> None:
    device, dtype = q_BHSD.device.type, q_BHSD.dtype
    if device not in ("cpu", "cuda"):
        raise _refusal(f"tensors on {device}", "tensors on cpu or cuda, for which PyTorch has a flash kernel")
    if q_BHSD.numel() == 0:
        raise _refusal(f"no tokens ({_described(q_BHSD)})", "one token or more")
    if device == "cpu":
        if dropout > 0:
            expected = "none in PyTorch's flash kernel on the CPU"
            raise _refusal(f"attention dropout {dropout}", expected, "call model.eval(), or ")
        if mask is not None and mask.requires_grad:
            raise _refusal("a mask that requires a gradient", "one that does not", "detach it, or ")
        return
    if dtype not in (torch.float16, torch.bfloat16):
        raise _refusal(str(dtype).removeprefix("torch."), "float16 or bfloat16 on CUDA", "load it in one of them, or ")
    if mask is not None:
        expected = "plain causality: PyTorch's flash kernel takes no mask on CUDA"
        raise _refusal("padded rows or a mask", expected, "give rows of one length without padding, or ")
    if q_BHSD.shape[-1] > _LARGEST_HEAD_ON_CUDA:
        raise _refusal(f"head_dim {q_BHSD.shape[-1]}", f"at most {_LARGEST_HEAD_ON_CUDA} on CUDA")


def _ask_cuda(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float, grouped: bool) -> None:
    """Asks PyTorch itself, which knows the GPU and the build."""
    cuda = torch.backends.cuda
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        # causality of either alignment changes nothing but for unequal lengths, which are asked as the lower-right one
        taken = cuda.can_use_flash_attention(cuda.SDPAParams(q, k, v, None, dropout, False, grouped))
    if not taken:
        found = f"{_described(q)} on {torch.cuda.get_device_name(q.device)}, which it does not take"
        raise _refusal(found, "inputs and a GPU of PyTorch's flash kernel")


def _described(q_BHSD: torch.Tensor) -> str:
    return f"queries {list(q_BHSD.shape)} in {str(q_BHSD.dtype).removeprefix('torch.')}"


def _refusal(found: str, expected: str, first: str = "") -> RequestError:
    remedy = f"{first}load the model with attn_implementation='sdpa'"
    return RequestError(f"{found} with attention 'flash_attention'", expected, remedy, where="attn_implementation")


def _lower_right(tokens: int, keys: int) -> torch.Tensor:
    # imported here: it brings the whole of torch's compiler along
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(tokens, keys)
