"""A loaded bundle: generate, stream, logits, and the calls of other tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from nemotron_errors import RequestError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.records import ParityRecord
from nemotron_runtime.chat import ChatCalls
from nemotron_runtime.closing import Closing
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import Cancelled, GenerationRun, generate
from nemotron_runtime.engine.results import Generation, TextChunk, Timings
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.tasks import TaskCalls
from nemotron_runtime.text.tokenizer import Tokenizer

__all__ = ["Model", "Prompt", "Result", "TextChunk", "Timings", "load"]

Prompt = str | Sequence[int] | npt.NDArray[np.int64]
Result = Generation

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


class Model(ChatCalls, TaskCalls, Closing):
    """A bundle's engine and tokenizer. One request at a time: the engine has one KV cache.

    Attributes:
        bundle: the opened bundle.
        engine: what feeds sequences to the model.
        tokenizer: the bundle's tokenizer; None where it has none, and prompts are token ids.
    """

    def __init__(self, bundle: Bundle, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.bundle = bundle
        self.engine = engine
        self.tokenizer = tokenizer

    @property
    def limits(self) -> Limits:
        """What a request may ask for at most."""
        return self.engine.limits

    @property
    def parity(self) -> ParityRecord:
        """Whether the bundle's numbers are proven."""
        return self.bundle.manifest.parity

    @overload
    def generate(
        self, prompt: str, *, add_special_tokens: bool = True, cancelled: Cancelled | None = None, **params: Any
    ) -> Result: ...

    @overload
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        add_special_tokens: bool = True,
        cancelled: Cancelled | None = None,
        **params: Any,
    ) -> Any: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        add_special_tokens: bool = True,
        cancelled: Cancelled | None = None,
        **params: Any,
    ) -> Any:
        """Answers a prompt, or several as one batch; more than ``limits.max_batch`` answers run in micro-batches.

        Args:
            prompt: text or token ids, or a list of such.
            add_special_tokens: put the tokenizer's special tokens around texts.
            cancelled: a callable or ``threading.Event`` that ends the request between two steps.
            params: fields of :class:`GenerationParams`; the model's end-of-sequence tokens by default.

        Returns:
            A :class:`Result` for one prompt and one answer; else a list, in the order of the prompts.

        Raises:
            RequestError: a parameter or prompt that makes no sense.
            LimitError: a request past :attr:`limits`.
        """
        self._require("causal-lm")
        prompts, single = self._prompts(prompt, add_special_tokens)
        chosen = self._params(params)
        decoder = self.tokenizer.incremental if self.tokenizer else None
        results = generate(self.engine, prompts, chosen, decoder=decoder, cancelled=cancelled)
        return results[0] if single and chosen.num_return_sequences == 1 else results

    def stream(
        self, prompt: Prompt, *, add_special_tokens: bool = True, cancelled: Cancelled | None = None, **params: Any
    ) -> Iterator[TextChunk]:
        """Answers one prompt piece by piece; arguments and errors as :meth:`generate`, raised by this call.

        Leaving the iterator ends the request.
        """
        self._require("causal-lm")
        prompts, single = self._prompts(prompt, add_special_tokens)
        chosen = self._params(params)
        if not single or chosen.num_return_sequences != 1:
            raise RequestError("several answers", "one prompt and one answer", "stream them one by one", where="stream")
        decoder = self.tokenizer.incremental if self.tokenizer else None
        run = GenerationRun(self.engine, prompts, chosen, decoder=decoder, cancelled=cancelled)
        return (TextChunk(event.text, event.token_id, event.finish_reason) for event in run)

    def logits(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits at every position of one prompt, float32 [S, vocab_size].

        Raises:
            RequestError: no ids, or ids outside the vocabulary.
            LimitError: more ids than ``limits.max_seq_len``.
        """
        return self.engine.logits(ids)

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def _params(self, given: dict[str, Any]) -> GenerationParams:
        if unknown := sorted(set(given) - set(GenerationParams.names())):
            expected = ", ".join(GenerationParams.names())
            raise RequestError(f"parameters {', '.join(unknown)}", expected, "correct them", where="generate")
        # the filters may be given as None, which switches them off
        chosen = {name: value for name, value in given.items() if value is not None}
        return GenerationParams(**{"eos_token_ids": self.bundle.manifest.model.eos_token_ids, **chosen})


def load(
    bundle: str | Path,
    *,
    weights_dir: str | Path | None = None,
    allow_unverified: bool = False,
    threads: int | None = None,
) -> Model:
    """Loads a bundle.

    Args:
        bundle: the bundle's folder.
        weights_dir: where the weights are, if they were moved since the build.
        allow_unverified: load a bundle whose parity is pending.
        threads: CPU threads; the executor's choice where None.

    Raises:
        BundleError: incomplete, changed, too new or not verified.
        TokenizerError: broken tokenizer files.
        MissingDependencyError: what the executor needs is not installed.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise RequestError(repr(threads), "a number of threads, at least 1", "correct it", where="threads")
    opened = Bundle.open(bundle, weights_dir=weights_dir, allow_unverified=allow_unverified)
    present = any(name in opened.manifest.files for name in _TOKENIZER_FILES)
    tokenizer = Tokenizer.from_directory(opened.directory) if present else None
    return Model(opened, Engine(open_executor(opened, threads)), tokenizer)
