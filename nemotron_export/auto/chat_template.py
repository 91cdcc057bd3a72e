"""`apply_chat_template` of a checkpoint's tokenizer, as transformers has it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from nemotron_errors import RequestError
from nemotron_runtime.chat import ChatFormat, plain

from nemotron_export.auto.lengths import Lengths
from nemotron_export.auto.tokenizer import BatchTokenizer

__all__ = ["PretrainedTokenizer"]


class PretrainedTokenizer(BatchTokenizer):
    """The tokenizer of a checkpoint's folder, which renders conversations too."""

    @cached_property
    def chat_format(self) -> ChatFormat:
        """The checkpoint's chat templates; the prompt of Nemotron-Mini where it has none but the tokens for it.

        Raises:
            TokenizerError: broken files.
        """
        return ChatFormat.from_directory(self.folder, self.tokenizer)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        *,
        sanitize_control_tokens: bool = False,
        padding: bool | Literal["longest"] = False,
        return_tensors: Literal["pt"] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """A conversation, or a list of them, as the model's prompt.

        Args:
            conversation: messages {"role", "content", …}; keys whose value is None are left out.
            tools: JSON schemas of functions.
            documents: texts to answer from, {"title", "text"}.
            chat_template: a Jinja template, or the name of one of the checkpoint's.
            add_generation_prompt: end with what makes the assistant speak.
            tokenize: False gives the text.
            sanitize_control_tokens: encode control tokens in what was given as text, so that no message can speak for
                another role. As in transformers it is off by default here; ``Model.chat`` of a bundle always does it.
            padding: fill the rows of several conversations up to the longest one.
            return_tensors: "pt" for tensors.
            return_dict: False gives the token ids alone.
            kwargs: what the template sees besides.

        Returns:
            A batch with ``input_ids`` and ``attention_mask``, token ids, or the text; a list where a list was given.

        Raises:
            RequestError: no messages, or arguments that make no sense.
            TokenizerError: no template, or one that cannot render this.
        """
        if not isinstance(conversation, (list, tuple)) or not conversation:
            expected = "a list of messages, or of conversations"
            raise RequestError(f"{conversation!r:.40}", expected, "give a message", where="conversation")
        batched = isinstance(conversation[0], (list, tuple))
        chats = [_plain_messages(chat) for chat in (conversation if batched else [conversation])]
        variables = {
            **plain(kwargs, "kwargs"),
            "tools": plain(tools, "tools"),
            "documents": plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        form = self.chat_format
        if sanitize_control_tokens:
            if not tokenize:
                found = "sanitize_control_tokens for text"
                raise RequestError(found, "tokenize=True with it", "leave one out", where="tokenize")
            rows = [form.encode(chat, chat_template, **variables) for chat in chats]
        else:
            texts = [form.render(chat, chat_template, **variables) for chat in chats]
            if not tokenize:
                return texts if batched else texts[0]
            rows = [form.encoder.template(text) for text in texts]
        width = Lengths.of(padding, False, None, self.model_max_length).width
        batch = self._batch(rows, width, None, return_tensors, single=not batched)
        return batch if return_dict else batch["input_ids"]


def _plain_messages(chat: Any) -> list[dict[str, Any]]:
    messages = plain(list(chat), "conversation")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            where = f"conversation[{number}]"
            raise RequestError(type(message).__name__, "a dict with role and content", "correct it", where=where)
    return [{key: value for key, value in message.items() if value is not None} for message in messages]
