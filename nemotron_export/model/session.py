"""The reference model as a session of the runtime: the one generation loop runs over eager PyTorch too.

Shapes: B rows, S new tokens, K positions whose logits are wanted, T key slots, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from nemotron_errors import RequestError
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.executors.base import Session

from nemotron_export.model.cache import RowCache
from nemotron_export.model.pretrained import NemotronPreTrainedModel

__all__ = ["EagerSession"]

Ids = npt.NDArray[np.int64]


class EagerSession(Session):
    """The reference path (``hf``), rows of different lengths included.

    Rows of one length take the very calls that a DynamicCache gives them; others go through an explicit mask.

    Args:
        prefill_chunk: new tokens of one pass at most; ``max_seq_len`` where None, so that prefill is one pass.

    Raises:
        RequestError: a model in training mode, whose dropout would make the answer random.
    """

    def __init__(
        self, model: NemotronPreTrainedModel, max_batch: int, max_seq_len: int, prefill_chunk: int | None = None
    ) -> None:
        super().__init__(model.config.vocab_size, Limits(max_seq_len, max_batch, prefill_chunk or max_seq_len))
        if model.training:
            raise RequestError("a model in training mode", "a model in eval mode", "call model.eval() first")
        self.model = model
        self._cache: RowCache | None = None

    def allocate(self, rows: int, slots: int) -> None:
        self._cache = RowCache(rows, slots)

    @torch.no_grad()
    def forward(
        self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids
    ) -> npt.NDArray[np.float32]:
        assert self._cache is not None, "reset comes first"
        device = self.model.device
        S = input_ids_BS.shape[1]
        uniform = self._cache.place(query_start_B.tolist(), query_length_B.tolist(), S, device)
        # padding stays at its row's last position, so that it cannot stretch RoPE types that look at the longest one
        token_BS = np.minimum(np.arange(S), np.maximum(query_length_B - 1, 0)[:, None])
        position_BS = torch.from_numpy(query_start_B[:, None] + token_BS).to(device)
        out = self.model(
            input_ids=torch.from_numpy(input_ids_BS).to(device),
            attention_mask=None if uniform else self._mask(position_BS),
            position_ids=position_BS,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.from_numpy(logits_index_BK).to(device),
        )
        return out.logits.float().cpu().numpy()

    def close(self) -> None:
        self._cache = None

    def _mask(self, position_BS: torch.Tensor) -> torch.Tensor:
        """[B, 1, S, T]: each token sees its row's slots up to its own position."""
        assert self._cache is not None
        slot_T = torch.arange(self._cache.kv_length(position_BS.shape[1]), device=position_BS.device)
        visible_B1ST = (slot_T <= position_BS[..., None])[:, None]
        if self.model.attn_implementation != "eager":
            return visible_B1ST
        dtype = self.model.dtype
        return torch.zeros(visible_B1ST.shape, dtype=dtype, device=visible_B1ST.device).masked_fill_(
            ~visible_B1ST, torch.finfo(dtype).min
        )
