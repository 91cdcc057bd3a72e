"""A model's answer to a conversation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

from nemotron_errors import LimitError, RequestError

from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.chat.fallback import parse_tool_calls
from nemotron_runtime.chat.format import ChatFormat
from nemotron_runtime.chat.messages import checked_documents, checked_messages, checked_tools
from nemotron_runtime.engine.generation import Cancelled
from nemotron_runtime.engine.results import Generation, TextChunk
from nemotron_runtime.text.tokenizer import Tokenizer

__all__ = ["ChatCalls", "ChatResult"]

_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class ChatResult:
    """The answer to a conversation.

    Attributes:
        message: {"role": "assistant", "content": text without tool calls, "tool_calls": the calls, mostly none}; append
            it to the messages to go on.
        result: token ids, the whole text, why it ended, timings.
        prompt_tokens: tokens of the prompt.
    """

    message: dict[str, Any]
    result: Generation
    prompt_tokens: int


class ChatCalls(ABC):
    """What a model does with conversations, by its own `generate` and `stream`."""

    bundle: Bundle
    tokenizer: Tokenizer | None

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What a request may ask for at most."""

    @abstractmethod
    def generate(self, prompt: Any, **options: Any) -> Any:
        """Answers a prompt."""

    @abstractmethod
    def stream(self, prompt: Any, **options: Any) -> Iterator[TextChunk]:
        """Answers a prompt piece by piece."""

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The bundle's chat templates.

        Raises:
            RequestError: a bundle without a tokenizer.
            TokenizerError: broken files.
        """
        if self.tokenizer is None:
            remedy = "build from a checkpoint with a tokenizer"
            raise RequestError("no tokenizer in the bundle", "one, to chat", remedy, where="chat")
        return ChatFormat.from_directory(self.bundle.directory, self.tokenizer, files=self.bundle.manifest.files)

    def chat_prompt(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        context: Sequence[str | dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation; arguments and errors as :meth:`chat`."""
        return self.chat_format.encode(
            checked_messages(messages, answered=add_generation_prompt),
            chat_template,
            tools=checked_tools(tools),
            documents=checked_documents(context),
            add_generation_prompt=add_generation_prompt,
        )

    @overload
    def chat(
        self, messages: Sequence[dict[str, Any]], *, stream: Literal[False] = False, **options: Any
    ) -> ChatResult: ...

    @overload
    def chat(
        self, messages: Sequence[dict[str, Any]], *, stream: Literal[True], **options: Any
    ) -> Iterator[TextChunk]: ...

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        context: Sequence[str | dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        stream: bool = False,
        cancelled: Cancelled | None = None,
        **params: Any,
    ) -> Any:
        """Answers a conversation, up to an end-of-sequence token or, in Nemotron-Mini's prompt, the next turn's token.

        The whole prompt is computed at every call; no cache is kept between turns. Control tokens inside messages,
        tools and documents are encoded as text, so that none can speak for another role; those of the template alone
        become tokens.

        Args:
            messages: dicts with role (system, user, assistant or tool) and content.
            tools: JSON schemas of functions that the model may call.
            context: documents to answer from: texts, or dicts with title and text.
            chat_template: a Jinja template, or the name of one of the bundle's; the bundle's default where None.
            add_generation_prompt: end the prompt with what makes the assistant speak.
            stream: give pieces of text as they are made.
            cancelled: a callable or ``threading.Event`` that ends the answer between two steps.
            params: fields of :class:`GenerationParams`; max_new_tokens is 512 by default, or what is left of
                ``limits.max_seq_len``.

        Returns:
            A :class:`ChatResult`, or an iterator of :class:`TextChunk` for a stream.

        Raises:
            RequestError: messages, tools, context or a parameter that make no sense.
            LimitError: a prompt that leaves no room for an answer in ``limits.max_seq_len``.
            TokenizerError: no template, or one that cannot render this conversation.
        """
        if params.get("num_return_sequences", 1) != 1:
            found = f"num_return_sequences {params['num_return_sequences']!r}"
            raise RequestError(found, "one answer", "ask again for another one", where="chat")
        ids = self.chat_prompt(
            messages,
            tools=tools,
            context=context,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
        )
        room = _room(self.limits.max_seq_len, len(ids), params.get("max_new_tokens"))
        given = {**params, "max_new_tokens": room}
        if not params.get("ignore_eos"):
            ends = self.chat_format.stop_token_ids(chat_template, tools=bool(tools))
            given["stop_token_ids"] = (*_as_tuple(params.get("stop_token_ids")), *ends)
        if stream:
            return self.stream(ids, cancelled=cancelled, **given)
        result: Generation = self.generate(ids, cancelled=cancelled, **given)
        content, calls = parse_tool_calls(result.text)
        return ChatResult({"role": "assistant", "content": content, "tool_calls": calls}, result, len(ids))


def _room(most: int, prompt_tokens: int, max_new_tokens: int | None) -> int:
    wanted = 1 if max_new_tokens is None else max_new_tokens
    if isinstance(wanted, int) and prompt_tokens + wanted > most:
        raise LimitError(
            f"{prompt_tokens} tokens of the conversation and {wanted} new",
            f"at most {most} together",
            "drop the oldest messages, or build with a larger --max-seq-len",
            where="chat",
        )
    return min(_MAX_NEW_TOKENS, most - prompt_tokens) if max_new_tokens is None else max_new_tokens


def _as_tuple(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)
