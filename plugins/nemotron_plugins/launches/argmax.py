"""Launch rules of the greedy choice of a token: the largest of each part of the vocabulary, then the largest of all."""

from __future__ import annotations

from nemotron_plugins.launches.launch import Gpu, GridAxis, Launch, declared, next_power_of_two

__all__ = ["argmax_combine_rule", "argmax_launches", "argmax_rule"]

_BLOCK = 1024
_MAX_PARTS = 256


def argmax_rule(*, vocab: int, multiprocessors: int, pdl: bool = False) -> Launch:
    """The launch of ``argmax_kernel`` on logits [B, vocab]; its constexpr ``PARTS`` says how many partial results."""
    parts = max(1, min(_MAX_PARTS, next_power_of_two(multiprocessors), next_power_of_two(-(-vocab // _BLOCK))))
    return Launch(
        kernel="argmax.argmax_kernel",
        arguments=declared("*fp32 logits_ptr partial_ptr, *i64 partial_index_ptr"),
        constexprs={"VOCAB": vocab, "PARTS": parts, "BLOCK": _BLOCK, "PDL": pdl},
        grid=(GridAxis(1, ("B",)), GridAxis(parts)),
        num_warps=4,
        pdl=pdl,
    )


def argmax_combine_rule(*, parts: int, pdl: bool = False) -> Launch:
    """The launch of ``argmax_combine_kernel`` after an ``argmax_kernel`` of so many parts."""
    return Launch(
        kernel="argmax.argmax_combine_kernel",
        arguments=declared("*fp32 partial_ptr, *i64 partial_index_ptr token_ptr"),
        constexprs={"PARTS": parts, "PDL": pdl},
        grid=(GridAxis(1, ("B",)),),
        num_warps=4,
        pdl=pdl,
    )


def argmax_launches(vocab: int, gpu: Gpu) -> dict[str, Launch]:
    """Both launches of the greedy choice on logits [B, vocab], in their order."""
    part = argmax_rule(vocab=vocab, multiprocessors=gpu.multiprocessors, pdl=gpu.pdl)
    return {"argmax": part, "argmax_combine": argmax_combine_rule(parts=int(part.constexprs["PARTS"]), pdl=gpu.pdl)}
