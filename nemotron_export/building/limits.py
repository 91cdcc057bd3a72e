"""The limits that a bundle is built for."""

from __future__ import annotations

from nemotron_errors import LimitError
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.config.config import NemotronConfig

__all__ = ["DEFAULT_MAX_BATCH", "DEFAULT_PREFILL_CHUNK", "choose_limits"]

DEFAULT_MAX_SEQ_LEN = 4096
DEFAULT_MAX_BATCH = 8
DEFAULT_PREFILL_CHUNK = 2048


def choose_limits(
    config: NemotronConfig,
    max_seq_len: int | None = None,
    max_batch: int | None = None,
    prefill_chunk: int | None = None,
) -> Limits:
    """Fills in what is not given, and refuses what the model was not made for.

    Args:
        max_seq_len: prompt and new tokens together; min(max_position_embeddings, 4096) by default.
        max_batch: sequences at once.
        prefill_chunk: prompt tokens computed at once; never more than max_seq_len.

    Raises:
        LimitError: for a limit below its minimum, or more positions than the config has.
    """
    positions = config.max_position_embeddings
    length = min(positions, DEFAULT_MAX_SEQ_LEN) if max_seq_len is None else max_seq_len
    if length > positions:
        raise LimitError(
            f"{length} positions", f"at most max_position_embeddings = {positions}",
            "lower it, or use a checkpoint whose config allows more", where="--max-seq-len",
        )  # fmt: skip
    sequences = DEFAULT_MAX_BATCH if max_batch is None else max_batch
    chunk = min(DEFAULT_PREFILL_CHUNK if prefill_chunk is None else prefill_chunk, length)
    for option, value, least in (
        ("--max-seq-len", length, 2),
        ("--max-batch", sequences, 1),
        ("--prefill-chunk", chunk, 1),
    ):
        if value < least:
            raise LimitError(str(value), f"at least {least}", "raise it", where=option)
    return Limits(max_seq_len=length, max_batch=sequences, prefill_chunk=chunk)
