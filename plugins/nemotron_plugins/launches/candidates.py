"""Launch rules of the largest logits: those of each part of the vocabulary, then again and again of parts together."""

from __future__ import annotations

from nemotron_plugins.launches.launch import Gpu, GridAxis, Launch, declared

__all__ = ["candidates_launches", "candidates_merge_rule", "candidates_rule", "tournament"]

# top-k and nuclei that are in use keep fewer; the sums of a block's sort grow with it
_LOG_COUNT = 7
_LOG_BLOCK = 11
# a key's low half is 32 bits
_MOST = 1 << 32


def tournament(vocab: int, log_block: int, log_count: int) -> tuple[int, ...]:
    """Parts of a row in each launch, the last one 1: ``candidates_kernel``, then ``candidates_merge_kernel``s."""
    parts = [-(-vocab >> log_block)]
    while parts[-1] > 1:
        parts.append(-(-(parts[-1] << log_count) >> log_block))
    return tuple(parts)


def candidates_rule(*, vocab: int, pdl: bool = False) -> Launch:
    """The launch of ``candidates_kernel`` on logits [B, vocab]; its keys are [B, parts, 2^LOG_COUNT]."""
    assert 0 < vocab < _MOST
    return Launch(
        kernel="candidates.candidates_kernel",
        arguments=declared("*fp32 logits_ptr temperature_ptr, *i64 key_ptr, *fp32 mass_ptr"),
        constexprs={"VOCAB": vocab, "LOG_BLOCK": _LOG_BLOCK, "LOG_COUNT": _LOG_COUNT, "PDL": pdl},
        grid=(GridAxis(1, ("B",)), GridAxis(tournament(vocab, _LOG_BLOCK, _LOG_COUNT)[0])),
        num_warps=8,
        fp_fusion=False,
        pdl=pdl,
    )


def candidates_merge_rule(*, pdl: bool = False) -> Launch:
    """A launch of ``candidates_merge_kernel``: B rows of keys, each in P parts."""
    return Launch(
        kernel="candidates.candidates_merge_kernel",
        arguments=declared("*i64 key_ptr largest_key_ptr, i32 keys"),
        constexprs={"LOG_BLOCK": _LOG_BLOCK, "LOG_COUNT": _LOG_COUNT, "PDL": pdl},
        grid=(GridAxis(1, ("B",)), GridAxis(1, ("P",))),
        num_warps=8,
        fp_fusion=False,
        pdl=pdl,
    )


def candidates_launches(vocab: int, gpu: Gpu) -> dict[str, Launch]:
    """That on logits [B, vocab], and that on what it leaves, for each further launch of :func:`tournament`."""
    return {
        "candidates": candidates_rule(vocab=vocab, pdl=gpu.pdl),
        "candidates_merge": candidates_merge_rule(pdl=gpu.pdl),
    }
