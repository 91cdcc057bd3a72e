"""What makes a config.json one that this project can reproduce: types, ranges, architecture, unknown keys."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from nemotron_errors import ConfigError
from nemotron_formats.dtypes import RUN_DTYPES

from nemotron_export.files.untrusted import quote

__all__ = ["HARMLESS_KEYS", "check_architecture", "check_fields", "check_unknown_keys", "count_labels"]

# Keys that describe, label or default, and change no number that the model computes.
HARMLESS_KEYS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _class_name _commit_hash
    _experts_implementation_internal _name_or_path attn_implementation auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward classifier_dropout custom_pipelines decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id generation_config hidden_dropout id2label is_decoder label2id length_penalty license
    max_length max_new_tokens min_length min_new_tokens min_p model_version name_or_path no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores prefix pretraining_tp problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tokenizer_class top_k top_p torchscript transformers_version transformers_weights
    trust_remote_code typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_return_dict
    """.split()
)

# Keys that change the maths by being off.
_ALWAYS_ON = ("is_causal", "tie_last_hidden_states", "token_classification_bias")

_READ_ELSEWHERE = frozenset(
    """
    model_type architectures dtype torch_dtype kv_channels rope_parameters rope_theta partial_rotary_factor
    rope_scaling rope_percent rope_percentage original_max_position_embeddings
    """.split()
)

_ARCHITECTURES = frozenset(
    f"Nemotron{kind}"
    for kind in "Model ForCausalLM ForSequenceClassification ForQuestionAnswering ForTokenClassification".split()
)

_POSITIVE = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim num_key_value_heads
    max_position_embeddings
    """.split()
_RESOLVED = ("head_dim", "num_key_value_heads")
# far above every published model, far below what overflows an allocation size
_LARGEST = 2**31 - 1


def check_architecture(values: Mapping[str, Any], where: str) -> None:
    """Refuses another model type or architecture."""
    model_type = values.get("model_type")
    if model_type != "nemotron":
        remedy = "give a Nemotron checkpoint in Hugging Face's layout"
        raise ConfigError(f"model_type {model_type!r}", "'nemotron'", remedy, where=where)
    names = values.get("architectures")
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"architectures {names!r}", "a list of class names", "correct the config", where=where)
    if foreign := [n for n in names if n not in _ARCHITECTURES]:
        expected = f"one of {', '.join(sorted(_ARCHITECTURES))}"
        raise ConfigError(f"architecture {foreign[0]}", expected, "give a Nemotron checkpoint", where=where)


def check_unknown_keys(values: Mapping[str, Any], fields: Collection[str], where: str) -> None:
    """Refuses keys that are no field, unknown here and switched on, since they may change the maths."""
    for key in _ALWAYS_ON:
        if values.get(key) not in (None, True):
            raise ConfigError(
                f"{key} = {values[key]!r}", "true, as in every model of this family", "remove the key", where=where
            )
    known = {*fields, *_READ_ELSEWHERE, *HARMLESS_KEYS, *_ALWAYS_ON}
    unknown = sorted(str(k) for k, v in values.items() if k not in known and v not in (None, False, 0, "", {}, []))
    if unknown:
        raise ConfigError(
            ", ".join(f"{key} = {json.dumps(values[key], default=str)[:60]}" for key in unknown[:5]),
            "only keys that this model has, since others may change its numbers",
            "remove the key if it has no meaning for this model; otherwise the checkpoint is not a plain Nemotron",
            where=where,
        )


def count_labels(extra: Mapping[str, Any], where: str) -> int:
    """Classes of a classification head: those of ``id2label``, else ``num_labels``, else 2.

    Not among :func:`check_fields`, since models without such a head ignore both keys.

    Raises:
        ConfigError: an ``id2label`` that is no object or empty, a ``num_labels`` that is no positive whole number.
    """
    labels, number = extra.get("id2label"), extra.get("num_labels")
    if labels is not None:
        if not isinstance(labels, dict) or not labels:
            found = f"id2label = {quote(labels)}"
            raise ConfigError(found, "an object: class -> label", "correct the config", where=where)
        return len(labels)
    if number is None:
        return 2
    if type(number) is not int or not 0 < number <= _LARGEST:
        found = f"num_labels = {quote(number)}"
        raise ConfigError(found, "a whole number of 1 or more", "correct the config", where=where)
    return number


def check_fields(values: Mapping[str, Any], where: str) -> None:
    """Checks the type and range of every field of a config."""

    def refuse(name: str, expected: str) -> None:
        raise ConfigError(f"{name} = {values[name]!r}", expected, "correct the config", where=where)

    for name in _POSITIVE:
        value = values[name]
        if value is None and name in _RESOLVED:
            continue
        if type(value) is not int or not 0 < value <= _LARGEST:
            refuse(name, f"a whole number from 1 to {_LARGEST}")
    for name in ("initializer_range", "norm_eps", "attention_dropout"):
        value = values[name]
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            refuse(name, "a finite number, 0 or more")
    if values["norm_eps"] == 0:
        refuse("norm_eps", "a number above 0")
    if values["attention_dropout"] >= 1:
        refuse("attention_dropout", "a probability below 1")
    for name in ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias"):
        if type(values[name]) is not bool:
            refuse(name, "true or false")
    vocabulary = f"a token id from 0 to {values['vocab_size'] - 1}"

    def is_id(value: Any) -> bool:
        return type(value) is int and 0 <= value < values["vocab_size"]

    for name in ("pad_token_id", "bos_token_id"):
        if values[name] is not None and not is_id(values[name]):
            refuse(name, f"{vocabulary}, or null")
    ids = values["eos_token_id"]
    if ids is not None and not all(map(is_id, ids if isinstance(ids, list) else [ids])):
        refuse("eos_token_id", f"{vocabulary}, a list of such, or null")
    if values["dtype"] is not None and values["dtype"] not in RUN_DTYPES:
        refuse("dtype", f"one of {', '.join(RUN_DTYPES)}")
    if values["hidden_act"] != "relu2":
        refuse("hidden_act", "'relu2', the activation of this family")
    if not isinstance(values["rope_parameters"], dict):
        refuse("rope_parameters", "an object")
