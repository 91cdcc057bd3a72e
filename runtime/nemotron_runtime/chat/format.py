"""How a model's conversations become prompts: its chat template, or the prompt of Nemotron-Mini."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_errors import RequestError, TokenizerError

from nemotron_runtime.chat.encoder import TemplateEncoder
from nemotron_runtime.chat.fallback import MARKERS, NEMOTRON_MINI_TEMPLATE
from nemotron_runtime.text.backend import read_json_object
from nemotron_runtime.text.tokenizer import Tokenizer

__all__ = ["ChatFormat", "read_template"]

_TEMPLATE_FILE = "chat_template.jinja"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatFormat:
    """The chat templates of a folder.

    Attributes:
        encoder: what encodes the prompts.
        templates: Jinja templates by name; one without a name is "default". Empty where there is none.
        special_tokens: strings of the special tokens, by the names that templates use (bos_token, …).
    """

    encoder: TemplateEncoder
    templates: dict[str, str]
    special_tokens: dict[str, str]

    @classmethod
    def from_directory(
        cls, folder: Path, tokenizer: Tokenizer, *, files: Container[str] | None = None, fallback: bool = True
    ) -> ChatFormat:
        """Reads chat_template.jinja and tokenizer_config.json.

        Args:
            folder: a checkpoint's or a bundle's folder.
            tokenizer: the folder's tokenizer.
            files: names that count; a bundle's are those that its manifest has a hash of.
            fallback: take Nemotron-Mini's prompt where there is no template and the tokenizer has its tokens.

        Raises:
            TokenizerError: files that are broken.
        """

        def read(name: str) -> dict[str, Any]:
            return read_json_object(folder / name) if files is None or name in files else {}

        config = read("tokenizer_config.json")
        named = {**read("special_tokens_map.json"), **config}
        special = {name: text for name in _NAMED if (text := _content(named.get(name)))}
        templates = _templates(config.get("chat_template"), str(folder / "tokenizer_config.json"))
        file = folder / _TEMPLATE_FILE
        if (files is None or _TEMPLATE_FILE in files) and file.is_file():
            templates["default"] = read_template(file)
        encoder = TemplateEncoder.from_directory(folder, tokenizer)
        if not templates and fallback and all(piece in encoder.whole_tokens for piece in MARKERS):
            templates = {"default": NEMOTRON_MINI_TEMPLATE}
        return cls(encoder, templates, special)

    def choose(self, chat_template: str | None = None, *, tools: bool = False) -> str:
        """The template to render.

        Args:
            chat_template: a template, or the name of one; None takes "tool_use" for tools where it is there, else
                "default".
            tools: whether tools are given.

        Raises:
            TokenizerError: there is no template, or none that can be chosen.
        """
        if chat_template in self.templates:
            return self.templates[chat_template]
        if chat_template is not None:
            if "{" not in chat_template:
                expected = "a Jinja template, or the name of one: " + (
                    ", ".join(sorted(self.templates)) or "there is none"
                )
                raise TokenizerError(f"{chat_template!r:.60}", expected, "correct it", where="chat_template")
            return chat_template
        if tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" in self.templates:
            return self.templates["default"]
        if self.templates:
            found = f"templates {', '.join(sorted(self.templates))}"
            raise TokenizerError(found, "one that is named default", "choose one by chat_template=", where="chat")
        raise TokenizerError(
            "no chat template",
            f"{_TEMPLATE_FILE}, chat_template in tokenizer_config.json, or a tokenizer with {' and '.join(MARKERS)}",
            "give a template (--chat-template FILE, chat_template=); a base model is better served by generate",
            where="chat",
        )

    def stop_token_ids(self, chat_template: str | None = None, *, tools: bool = False) -> tuple[int, ...]:
        """Tokens that end an answer whatever the model's config says.

        They are the tokenizer's eos token and, where a template writes Nemotron-Mini's turns, what begins the next one.

        Raises:
            TokenizerError: as :meth:`choose`.
        """
        template = self.choose(chat_template, tools=tools)
        ends = [self.special_tokens.get("eos_token")]
        if all(marker in template for marker in MARKERS):
            ends.append(MARKERS[1])
        whole = self.encoder.whole_tokens
        return tuple(whole[piece] for piece in ends if piece in whole)

    def render(self, messages: list[dict[str, Any]], chat_template: str | None = None, **variables: Any) -> str:
        """A conversation as text; arguments as :meth:`encode`.

        Raises:
            TokenizerError: no template, or one that cannot render this.
        """
        from nemotron_runtime.chat.environment import render

        template = self.choose(chat_template, tools=variables.get("tools") is not None)
        defaults = {"tools": None, "documents": None, "add_generation_prompt": False}
        return render(template, {**defaults, **self.special_tokens, **variables, "messages": messages})

    def encode(self, messages: list[dict[str, Any]], chat_template: str | None = None, **variables: Any) -> list[int]:
        """A conversation as token ids. Control tokens in the messages, tools and documents stay text.

        Nothing is added to what the template writes: where it writes no bos token, there is none.

        Args:
            messages: plain messages, see :func:`checked_messages`.
            chat_template: see :meth:`choose`.
            variables: what the template sees besides: tools, documents, add_generation_prompt, others.

        Raises:
            TokenizerError: no template, or one that cannot render this.
        """
        from nemotron_runtime.chat.controls import control_tokens, encode_marked, mark

        template = self.choose(chat_template, tools=variables.get("tools") is not None)
        controls = control_tokens(self.encoder, template)
        marked = {name: mark(value, controls) for name, value in variables.items()}
        text = self.render(mark(messages, controls), template, **marked)
        return encode_marked(self.encoder, text, controls)


def read_template(path: Path) -> str:
    """A template's file.

    Raises:
        RequestError: it cannot be read as text.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise RequestError(found, "a Jinja template in UTF-8", "name another file", where=str(path)) from error


def _templates(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in value
    ):
        return {item["name"]: item["template"] for item in value}
    expected = "a template, or a list of {name, template}"
    raise TokenizerError(f"chat_template of type {type(value).__name__}", expected, "restore the file", where=where)


def _content(token: object) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
