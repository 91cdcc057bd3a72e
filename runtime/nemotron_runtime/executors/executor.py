"""The interface of what runs a model's forward pass, one provider each."""

from __future__ import annotations

from abc import abstractmethod

from nemotron_formats.cache import CacheSpec

from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.closing import Closing
from nemotron_runtime.executors.batch import Batch, Outputs

__all__ = ["Executor"]


class Executor(Closing):
    """Runs batches over a KV cache; who runs when, and how long each sequence is, is its caller's business.

    Attributes:
        vocab_size: token ids are below it.
        limits: sequences, tokens of one, and new tokens of one in a batch, at most.
        output_size: V: ``vocab_size``; classes or hidden_size where the bundle's task has another head.
        caches: what the KV cache consists of.
        candidate_count: top-k candidates that it gives of a position; 0 where choosing from logits is as good.
    """

    candidate_count: int = 0

    def __init__(
        self, vocab_size: int, limits: Limits, output_size: int | None = None, caches: tuple[CacheSpec, ...] = ()
    ) -> None:
        self.vocab_size, self.limits, self.caches = vocab_size, limits, caches
        self.output_size = vocab_size if output_size is None else output_size

    @property
    def device_memory_peak(self) -> int | None:
        """The most bytes that it allocated of a GPU's memory; None where it knows of none."""
        return None

    @abstractmethod
    def allocate(self, sequences: int, capacity: int) -> None:
        """Makes fresh contiguous caches of finite values for ``sequences`` of up to ``capacity`` tokens each."""

    @abstractmethod
    def run(self, batch: Batch) -> Outputs:
        """Feeds new tokens, which the caches then hold.

        The batch keeps to :attr:`limits` and to what was allocated. Without a block table it has all sequences.
        """
