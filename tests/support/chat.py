"""Chat templates of several kinds, conversations, a tokenizer with markers, and a model that answers by a script."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import tokenizers
from nemotron_runtime.model import Model
from nemotron_runtime.text.tokenizer import Tokenizer
from tokenizers import decoders, models, pre_tokenizers

from support.toy_engine import ToyEngine

__all__ = [
    "CHATML",
    "CONVERSATIONS",
    "LLAMA_TOOLS",
    "LOOPS",
    "MARKERS",
    "RAISING",
    "TOOLS",
    "scripted_model",
    "write_tokenizer",
]

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_TOOLS = """\
{{- bos_token }}
{%- set date = date_string | default('1 Jan 2026') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday: " ~ date ~ "\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + eos_token }}
{% for message in messages %}
    {% if message.tool_calls is defined and message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + "}" + eos_token }}
    {% elif message.role in ['tool', 'ipython'] %}
        {{- "<|start|>tool<|end|>" ~ message.content | tojson ~ eos_token }}
    {% else %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{% endif %}
"""
LOOPS = """\
{%- set ns = namespace(seen=0, text='') %}
{%- macro turn(m) %}[{{ m.role }}] {{ m.content.split('|')[-1].strip() }}{% endmacro %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
    {%- if ns.seen > 3 %}{% break %}{% endif %}
    {%- set ns.text = turn(message) ~ '\\n' ~ ns.text %}
{%- endfor %}
{{- ns.text }}
{%- for message in messages if message.role == 'assistant' %}
{% generation %}{{ loop.index }}: {{ message.content }}{% endgeneration %}

{% endfor %}
{{- documents | length if documents else 'none' }} {{ {'a': 1} | tojson }} {{ 'é' | tojson }} {{ undefined_name }}
"""
RAISING = """\
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate, user first') }}
    {%- endif %}
    {{- message.content }}
{%- endfor %}
"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place <now>, in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello there!"}],
    "turns": [
        {"role": "system", "content": "  You are brief.\n"},
        {"role": "user", "content": "One\ntwo | three"},
        {"role": "assistant", "content": "Sure: naïve 中文 😀"},
        {"role": "user", "content": " And <b>now</b>? "},
    ],
    "tools": [
        {"role": "user", "content": "Weather in Zürich?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "content": '{"temperature": 21}'},
        {"role": "user", "content": "Thanks"},
    ],
}
MARKERS = ("<extra_id_0>", "<extra_id_1>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>")


def write_tokenizer(folder: Path, *, markers=MARKERS, special=True, config=None, template=None) -> Path:
    """A byte-level tokenizer of 256 + 4 + n tokens, whose markers are added tokens, and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<pad>", "<unk>", "<s>", "</s>", *alphabet])}
    merges = [("e", "x"), ("t", "h"), ("e", "r"), ("<", "e")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    tokens = [tokenizers.AddedToken(marker, special=special, normalized=False) for marker in markers]
    (made.add_special_tokens if special else made.add_tokens)(tokens)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "clean_up_tokenization_spaces": False, **(config or {}),
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder


def scripted_model(folder: Path, answer: str, *, max_seq_len=400, session=None) -> Model:
    """A model whose greedy answer to any prompt is ``answer`` and an end-of-sequence token."""
    tokenizer = Tokenizer.from_directory(folder)
    script = [*tokenizer.encode(answer, add_special_tokens=False), 3]
    session = session or ToyEngine(tokenizer.vocab_size, max_seq_len=max_seq_len, prefill_chunk=64, script=script)
    manifest = SimpleNamespace(
        task="causal-lm",
        files={path.name: None for path in folder.iterdir()},
        model=SimpleNamespace(eos_token_ids=(3,)),
    )
    return Model(SimpleNamespace(directory=folder, manifest=manifest), session, tokenizer)
