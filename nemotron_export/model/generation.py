"""``generate`` of the causal model: transformers' arguments and result, over the runtime's one loop and sampler."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nemotron_errors import RequestError
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, MakeDecoder
from nemotron_runtime.engine.generation import generate as run
from nemotron_runtime.text.tokenizer import Tokenizer

from nemotron_export.model.executor import EagerExecutor
from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.model.streaming import StepStream

__all__ = ["generate"]

# transformers' own defaults
_DEFAULT_NEW_TOKENS = 20
_DEFAULT_TOP_K = 50
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")
# settings of a checkpoint's generation_config.json that take the place of arguments that are not given
_STORED = (*_SAMPLING_ONLY, "repetition_penalty", "min_new_tokens")


def generate(
    model: NemotronPreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    bad_words_ids: Sequence[Sequence[int]] | None = None,
    streamer: Any = None,
    **params: Any,
) -> torch.Tensor:
    """Continues each sequence.

    Args:
        model: a causal model in eval mode.
        input_ids: [B, S].
        attention_mask: [B, S], 0 at padding, on the left or the right. Without it, the pad token marks padding
            unless it also ends a text, as in transformers.
        max_new_tokens: new tokens at most; 20 where neither it nor ``max_length`` is given.
        max_length: the prompt's S and the new tokens together, at most.
        do_sample: draw from the distribution (top_k 50 unless given); greedy otherwise.
        eos_token_id: ids that end a sequence.
        pad_token_id: fills sequences that ended early; where there is none, the first id that ends one.
        stop_strings: a sequence ends with the token that completes one of them in its new text.
        tokenizer: what ``stop_strings`` needs: an AutoTokenizer's, or a runtime's tokenizer.
        bad_words_ids: token sequences that the new text may not complete.
        streamer: gets every step's tokens; see :class:`~nemotron_export.model.streaming.StepStream`.
        params: further fields of :class:`~nemotron_runtime.engine.generation.GenerationParams`, such as
            ``num_return_sequences`` and ``seed``.

    What is None comes from ``model.generation_config``; the special tokens then from the config.

    Returns:
        int64 [B · num_return_sequences, S + new]: the input and the new tokens after it.

    Raises:
        RequestError: arguments that make no sense.
    """
    if input_ids.ndim != 2 or input_ids.dtype.is_floating_point:
        found = f"input_ids of shape {list(input_ids.shape)} and dtype {input_ids.dtype}"
        raise RequestError(found, "token ids [B, S]", "give one row of ids per prompt")
    S = input_ids.shape[1]
    stored = model.generation_config
    eos = _as_ids(_first(eos_token_id, stored.get("eos_token_id"), model.config.eos_token_ids))
    pad = _first(pad_token_id, stored.get("pad_token_id"), model.config.pad_token_id)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids) if pad is None or pad in eos else input_ids.ne(pad)
    if max_new_tokens is None and max_length is None:
        max_new_tokens, max_length = stored.get("max_new_tokens"), stored.get("max_length")
    chosen = GenerationParams(
        max_new_tokens=_new_tokens(S, max_new_tokens, max_length),
        eos_token_ids=eos,
        stop=_as_strings(stop_strings),
        bad_words_ids=bad_words_ids,
        **_sampling(do_sample, params, stored),
    )
    decoder = _decoder(stop_strings, tokenizer)
    prompts = [row[real].tolist() for row, real in zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)]
    sequences = len(prompts) * chosen.num_return_sequences
    engine = Engine(EagerExecutor(model, sequences, S + chosen.max_new_tokens))
    filler = pad if pad is not None else (eos[0] if eos else 0)
    repeated_ids = input_ids.repeat_interleave(chosen.num_return_sequences, dim=0)
    stream = None if streamer is None else StepStream(streamer, sequences, filler)
    if stream is not None:
        stream.begin(repeated_ids)
    answers = run(engine, prompts, chosen, on_token=stream, decoder=decoder)
    if stream is not None:
        stream.end()
    width = max(len(answer.token_ids) for answer in answers)
    new = torch.full((sequences, width), filler, dtype=input_ids.dtype)
    for row, answer in enumerate(answers):
        new[row, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
    return torch.cat((repeated_ids, new.to(input_ids.device)), dim=1)


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def _decoder(stop_strings: str | Sequence[str] | None, tokenizer: Any) -> MakeDecoder | None:
    if stop_strings is None:
        return None
    found = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(found, Tokenizer):
        remedy = "pass tokenizer=AutoTokenizer.from_pretrained(...) of nemotron_export"
        raise RequestError(f"stop_strings and {type(tokenizer).__name__}", "a tokenizer", remedy, where="tokenizer")
    return found.incremental


def _as_ids(ids: int | Sequence[int]) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _as_strings(strings: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if strings is None else (strings,) if isinstance(strings, str) else tuple(strings)


def _new_tokens(S: int, max_new_tokens: int | None, max_length: int | None) -> int:
    if max_new_tokens is not None:
        return max_new_tokens
    if max_length is None:
        return _DEFAULT_NEW_TOKENS
    if max_length <= S:
        found = f"max_length {max_length} and a prompt of {S} tokens"
        raise RequestError(found, "room for a new token", "give max_new_tokens instead")
    return max_length - S


def _sampling(do_sample: bool | None, params: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    known = set(GenerationParams.names()) - {"stop"}
    if unknown := sorted(set(params) - known):
        raise RequestError(", ".join(unknown), f"arguments among {', '.join(sorted(known))}", "leave it out")
    given = {name: value for name, value in params.items() if value is not None}
    kept = {name: stored[name] for name in _STORED if stored.get(name) is not None}
    if do_sample if do_sample is not None else stored.get("do_sample", False):
        return {"temperature": 1.0, "top_k": _DEFAULT_TOP_K, **kept, **given}
    if idle := [name for name in _SAMPLING_ONLY if name in given]:
        warnings.warn(f"{', '.join(idle)} without do_sample=True: greedy all the same", stacklevel=4)
    return {name: value for name, value in {**kept, **given}.items() if name not in _SAMPLING_ONLY}
