"""The prompt of Nemotron-Mini-4B-Instruct, for tokenizers with its tokens and no template; tool calls in answers."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["MARKERS", "NEMOTRON_MINI_TEMPLATE", "parse_tool_calls"]

# what begins the system text, and every turn after it
MARKERS = ("<extra_id_0>", "<extra_id_1>")

# Format: the model card of nvidia/Nemotron-Mini-4B-Instruct.
NEMOTRON_MINI_TEMPLATE = """\
{{- '<extra_id_0>System\\n' }}
{%- if messages[0].role == 'system' %}{{ (messages[0].content | trim) ~ '\\n' }}{% endif %}
{%- if tools or documents %}
    {%- if messages[0].role == 'system' %}{{ '\\n' }}{% endif %}
    {%- for tool in tools or [] %}{{ '<tool> ' ~ (tool | tojson) ~ ' </tool>\\n' }}{% endfor %}
    {%- for document in documents or [] %}
        {{- '<context> ' ~ (document.title ~ '\\n' if document.title else '') ~ document.text ~ ' </context>\\n' }}
    {%- endfor %}
{%- endif %}
{{- '\\n' }}
{%- for message in messages if message.role != 'system' %}
    {{- '<extra_id_1>' ~ message.role | capitalize ~ '\\n' }}
    {%- if message.content %}{{ (message.content | trim) ~ '\\n' }}{% endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<toolcall> ' ~ ((call.function or call) | tojson) ~ ' </toolcall>\\n' }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}
"""

_CALL = re.compile(r"<(toolcall|tool_call)>\s*(\{.*?\})\s*</\1>", re.DOTALL)


def parse_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Splits an answer into its text and the calls in it.

    A call is `<toolcall> {"name": …, "arguments": {…}} </toolcall>` (or `<tool_call>`); what is not well formed stays
    in the text.

    Returns:
        The text without the calls, and `{"type": "function", "function": {"name": …, "arguments": …}}` for each.
    """
    calls: list[dict[str, Any]] = []

    def take(match: re.Match[str]) -> str:
        try:
            call = json.loads(match[2])
        except (json.JSONDecodeError, RecursionError):
            return match[0]
        if not isinstance(call.get("name"), str) or not isinstance(call.get("arguments", {}), dict):
            return match[0]
        function = {"name": call["name"], "arguments": call.get("arguments", {})}
        calls.append({"type": "function", "function": function})
        return ""

    rest = _CALL.sub(take, text)
    return (rest.strip() if calls else text), calls
