"""Conversations: chat templates, the prompt of Nemotron-Mini, answers."""

from __future__ import annotations

from nemotron_runtime.chat.answering import ChatCalls, ChatResult
from nemotron_runtime.chat.fallback import parse_tool_calls
from nemotron_runtime.chat.format import ChatFormat, read_template
from nemotron_runtime.chat.messages import plain

__all__ = ["ChatCalls", "ChatFormat", "ChatResult", "parse_tool_calls", "plain", "read_template"]
