"""``generate`` of the causal model: transformers' arguments and result, over the runtime's one loop and sampler."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from nemotron_errors import RequestError
from nemotron_runtime.generation import GenerationParams
from nemotron_runtime.generation import generate as run

from nemotron_export.model.session import EagerSession

if TYPE_CHECKING:
    from nemotron_export.model.causal import NemotronForCausalLM

__all__ = ["generate"]

# transformers' own defaults
_DEFAULT_NEW_TOKENS = 20
_DEFAULT_TOP_K = 50
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")


def generate(
    model: NemotronForCausalLM,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool = False,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    **params: Any,
) -> torch.Tensor:
    """Continues each row.

    Args:
        model: a causal model in eval mode.
        input_ids: [B, S].
        attention_mask: [B, S], 0 at padding, on the left or the right. Without it, the pad token marks padding
            unless it also ends a text, as in transformers.
        max_new_tokens: new tokens at most; 20 where neither it nor ``max_length`` is given.
        max_length: the prompt's S and the new tokens together, at most.
        do_sample: draw from the distribution (top_k 50 unless given); greedy otherwise.
        eos_token_id: ids that end a row; the config's where None.
        pad_token_id: fills rows that ended early; the config's where None, or else the first id that ends a row.
        params: further fields of :class:`~nemotron_runtime.generation.GenerationParams`.

    Returns:
        int64 [B · num_return_sequences, S + new]: the input and the new tokens behind it.

    Raises:
        RequestError: arguments that make no sense.
    """
    if input_ids.ndim != 2 or input_ids.dtype.is_floating_point:
        found = f"input_ids of shape {list(input_ids.shape)} and dtype {input_ids.dtype}"
        raise RequestError(found, "token ids [B, S]", "give one row of ids per prompt")
    S = input_ids.shape[1]
    eos = model.config.eos_token_ids if eos_token_id is None else _as_ids(eos_token_id)
    pad = pad_token_id if pad_token_id is not None else model.config.pad_token_id
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids) if pad is None or pad in eos else input_ids.ne(pad)
    chosen = GenerationParams(
        max_new_tokens=_new_tokens(S, max_new_tokens, max_length),
        eos_token_ids=eos,
        **_sampling(do_sample, params),
    )
    prompts = [row[kept].tolist() for row, kept in zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)]
    rows = len(prompts) * chosen.num_return_sequences
    session = EagerSession(model, max_batch=rows, max_seq_len=S + chosen.max_new_tokens)
    answers = run(session, prompts, chosen)
    width = max(len(answer.token_ids) for answer in answers)
    filler = pad if pad is not None else (eos[0] if eos else 0)
    new = torch.full((rows, width), filler, dtype=input_ids.dtype)
    for row, answer in enumerate(answers):
        new[row, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
    return torch.cat((input_ids.repeat_interleave(chosen.num_return_sequences, dim=0), new.to(input_ids.device)), dim=1)


def _as_ids(ids: int | Sequence[int]) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _new_tokens(S: int, max_new_tokens: int | None, max_length: int | None) -> int:
    if max_new_tokens is not None:
        return max_new_tokens
    if max_length is None:
        return _DEFAULT_NEW_TOKENS
    if max_length <= S:
        found = f"max_length {max_length} and a prompt of {S} tokens"
        raise RequestError(found, "room for a new token", "give max_new_tokens instead")
    return max_length - S


def _sampling(do_sample: bool, params: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in params.items() if value is not None}
    if do_sample:
        return {"temperature": 1.0, "top_k": _DEFAULT_TOP_K, **given}
    if idle := [name for name in _SAMPLING_ONLY if name in given]:
        warnings.warn(f"{', '.join(idle)} without do_sample=True: greedy all the same", stacklevel=4)
    return {name: value for name, value in given.items() if name not in _SAMPLING_ONLY}
