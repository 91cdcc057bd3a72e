"""The calls of a loaded bundle whose head is no language model's.

Shapes: S tokens, E hidden_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import RequestError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.tasks.answering import Answer, answer
from nemotron_runtime.tasks.classification import Classification, classify
from nemotron_runtime.tasks.outputs import outputs_at
from nemotron_runtime.tasks.tagging import Tag, tag
from nemotron_runtime.text.tokenizer import Tokenizer

__all__ = ["CALL_OF_TASK", "TaskCalls"]

CALL_OF_TASK = {
    "causal-lm": "generate, stream or chat",
    "sequence-classification": "classify",
    "token-classification": "tag",
    "question-answering": "answer",
    "feature-extraction": "embed",
}


class TaskCalls:
    """`classify`, `tag`, `answer` and `embed`; each refuses a bundle of another task."""

    bundle: Bundle
    engine: Engine
    tokenizer: Tokenizer | None

    @property
    def task(self) -> str:
        """What the bundle's head is for."""
        return self.bundle.manifest.task

    def classify(self, text: Any) -> Any:
        """Scores of a text.

        Args:
            text: text or token ids, or a list of such.

        Returns:
            A :class:`Classification`, or a list of them for a list.

        Raises:
            RequestError: a bundle of another task, or a text that makes no sense.
            LimitError: a text past the bundle's limits.
        """
        self._require("sequence-classification")
        prompts, single = self._prompts(text, True)
        manifest = self.bundle.manifest
        found: list[Classification] = classify(self.engine, manifest.head, prompts, manifest.model.pad_token_id)
        return found[0] if single else found

    def tag(self, text: str | Sequence[str], *, merge: bool = False) -> Any:
        """A class for every token of a text.

        Args:
            text: a text, or a list of texts.
            merge: join neighbouring tokens of one class (``B-``/``I-`` labels understood) and leave ``O`` out.

        Returns:
            A list of :class:`Tag`, or a list of such lists for a list.

        Raises:
            RequestError: a bundle of another task, or without a tokenizer.
            LimitError: a text past the bundle's limits.
        """
        self._require("token-classification")
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        encodings = [self._tokenizer_for("tag").encode_spans(each) for each in texts]
        found: list[list[Tag]] = tag(self.engine, self.bundle.manifest.head, texts, encodings, merge=merge)
        return found[0] if single else found

    def answer(self, question: str, context: str, *, max_answer_tokens: int = 15, window_overlap: int = 128) -> Answer:
        """The span of the context that answers the question.

        Args:
            question: the question.
            context: the text that holds the answer; one that is too long is read in overlapping windows.
            max_answer_tokens: tokens of the answer at most.
            window_overlap: tokens that two windows share.

        Raises:
            RequestError: a bundle of another task or without a tokenizer, or an empty text.
            LimitError: a question that leaves no room for the context.
        """
        self._require("question-answering")
        return answer(
            self.engine,
            self._tokenizer_for("answer").encode_spans,
            question,
            context,
            max_answer_tokens=max_answer_tokens,
            window_overlap=window_overlap,
        )

    def embed(self, text: Any, *, pooling: str = "last", normalize: bool = False) -> Any:
        """Hidden states of a text, after the last norm.

        Args:
            text: text or token ids, or a list of such.
            pooling: "last" takes the last token's, "mean" the mean over all, "none" keeps every token's.
            normalize: divide by the Euclidean length.

        Returns:
            float32 [E] ([S, E] for "none"), or a list of them for a list.

        Raises:
            RequestError: a bundle of another task, another pooling, or a text that makes no sense.
            LimitError: a text past the bundle's limits.
        """
        self._require("feature-extraction")
        if pooling not in ("last", "mean", "none"):
            raise RequestError(repr(pooling), "last, mean or none", "choose one of them", where="pooling")
        prompts, single = self._prompts(text, True)
        positions = [np.arange(len(p)) if pooling != "last" else np.array([len(p) - 1]) for p in prompts]
        found = [_pooled(states_SE, pooling, normalize) for states_SE in outputs_at(self.engine, prompts, positions)]
        return found[0] if single else found

    def _require(self, task: str) -> None:
        if self.task != task:
            found = f"a bundle for {self.task}"
            remedy = f"call {CALL_OF_TASK[self.task]}, or build with --task {task}"
            raise RequestError(found, f"one for {task}", remedy, where=str(self.bundle.directory))

    def _tokenizer_for(self, call: str) -> Tokenizer:
        if self.tokenizer is None:
            remedy = "build from a checkpoint with a tokenizer"
            raise RequestError("no tokenizer in the bundle", "one, which tells characters", remedy, where=call)
        return self.tokenizer

    def _prompts(self, prompt: Any, add_special_tokens: bool) -> tuple[list[Any], bool]:
        """Token ids of each prompt, and whether there was one, not a list."""
        single = isinstance(prompt, str) or (isinstance(prompt, np.ndarray) and prompt.ndim == 1)
        if not single and not isinstance(prompt, (Sequence, np.ndarray)):
            found = type(prompt).__name__
            raise RequestError(found, "text, token ids or a list of such", "give a prompt", where="prompt")
        single = single or not any(isinstance(item, (str, Sequence, np.ndarray)) for item in prompt)
        prompts = [prompt] if single else list(prompt)
        return [self._ids(p, add_special_tokens) if isinstance(p, str) else p for p in prompts], single

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.tokenizer is None:
            remedy = "give token ids, or build from a checkpoint with a tokenizer"
            raise RequestError("text, but no tokenizer in the bundle", "token ids", remedy, where="prompt")
        return self.tokenizer.encode(text, add_special_tokens)


def _pooled(states_SE: npt.NDArray[np.float32], pooling: str, normalize: bool) -> npt.NDArray[np.float32]:
    pooled = {"last": states_SE[-1], "mean": states_SE.mean(0), "none": states_SE}[pooling].copy()
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True) if normalize else pooled
