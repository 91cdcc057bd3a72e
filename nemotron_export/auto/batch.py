"""What a call of a tokenizer gives: token ids and masks, as lists or tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemotron_errors import RequestError

from nemotron_export.installation.extras import require

if TYPE_CHECKING:
    import torch

__all__ = ["TokenBatch", "tensor", "wants_tensors"]


class TokenBatch(dict[str, Any]):
    """What a call of the tokenizer gives: ``input_ids`` and ``attention_mask``, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: str | int | torch.device) -> TokenBatch:
        """Moves the tensors, in place, and returns the batch.

        Raises:
            RequestError: a batch of lists.
        """
        for name, value in self.items():
            if isinstance(value, list):
                remedy = 'call the tokenizer with return_tensors="pt"'
                raise RequestError("lists", "tensors", remedy, where=name)
            self[name] = value.to(device)
        return self


def wants_tensors(return_tensors: object) -> bool:
    """Whether a call asks for tensors.

    Raises:
        RequestError: of another kind than PyTorch's.
    """
    if return_tensors not in (None, "pt"):
        raise RequestError(repr(return_tensors), "'pt' or None", "choose one of them", where="return_tensors")
    return return_tensors == "pt"


def tensor(rows: list[list[int]]) -> torch.Tensor:
    """Rows of one length as int64 [B, S]."""
    require("torch", "for tensors of token ids")
    import torch

    return torch.tensor(rows, dtype=torch.int64)
